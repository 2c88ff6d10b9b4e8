"""`inferengine chat`: a conversation with a served model from a terminal, as one tenant.

In: a credentials file (found by the tenant's name in a local deployment's state directory, or given). Out: streamed text.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from infer_server.client import Client, ConnectionLost, InferError
from infer_server.contract.state_home import state_home

HELP = "Ctrl-C stops an answer, /clear begins anew, Ctrl-D ends the chat"
EXIT_INTERRUPTED = 130


def find_credentials(tenant: str, state_dir: Path | None, deployment: str | None) -> Path:
    """The credentials file of `tenant` in a local deployment; FileNotFoundError says where it looked and what to do."""
    homes = [state_dir] if state_dir else sorted(p for p in state_home().glob(deployment or "*") if p.is_dir())
    found = [path for home in homes if (path := home / "credentials" / f"{tenant}.json").is_file()]
    if len(found) > 1:
        names = ", ".join(path.parent.parent.name for path in found)
        raise FileNotFoundError(f"tenant {tenant!r} is in several deployments ({names}): choose one with --deployment")
    if not found:
        looked = ", ".join(map(str, homes)) or str(state_home() / (deployment or ""))
        tenants = sorted({path.stem for home in homes for path in home.glob("credentials/[!.]*.json")})
        known = f"there are {', '.join(tenants)}" if tenants else "is `inferengine up` running?"
        raise FileNotFoundError(
            f"no credentials of tenant {tenant!r} in {looked}: {known}; other files by --credentials FILE"
        )
    return found[0]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="inferengine chat", description=chat.__doc__)
    parser.add_argument("prompt", nargs="*", help="one message; without it, an interactive conversation")
    parser.add_argument("--tenant", help="tenant of a local deployment, whose credentials file is looked up")
    parser.add_argument("--deployment", help="name of the local deployment, where several have this tenant")
    parser.add_argument("--state-dir", type=Path, help="state directory of the deployment, where `up` was given one")
    parser.add_argument("--credentials", type=Path, help="credentials file")
    parser.add_argument("--secret-key-file", type=Path, help="secret key of a tenant that has a key pair of its own")
    parser.add_argument("--system", help="system message that opens the conversation")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument(
        "--connect-timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long a message may wait for a connection (default: %(default)g)",
    )
    args = parser.parse_args(argv)
    if (args.tenant is None) == (args.credentials is None):
        parser.error("give either --tenant NAME or --credentials FILE")
    return args


def chat(argv: list[str]) -> int:
    """Chat with a served model as one tenant."""
    args = parse(argv)
    try:
        credentials = args.credentials or find_credentials(args.tenant, args.state_dir, args.deployment)
        with Client.from_credentials(
            credentials, secret_key_file=args.secret_key_file, connect_timeout=args.connect_timeout
        ) as client:
            conversation = Conversation(client, args)
            if not args.prompt and sys.stdin.isatty():
                return converse(conversation, local=args.tenant is not None)
            for text in [" ".join(args.prompt)] if args.prompt else filter(None, map(str.strip, sys.stdin)):
                conversation.ask(text)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever reads has seen enough, as in `| head`. Python writes out what it still holds when it ends: nowhere, now.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        tell(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 2
    except ValueError as error:
        tell(str(error))
        return 2
    except InferError as error:
        tell(explained(error, local=args.tenant is not None))
        return 1
    return 0


def converse(conversation: Conversation, local: bool) -> int:
    """With a person at a terminal: neither Ctrl-C nor a refused request ends it, and what was said before stays."""
    print(HELP, file=sys.stderr)
    for text in lines("you> "):
        if text == "/clear":
            conversation.clear()
            continue
        try:
            conversation.ask(text)
        except KeyboardInterrupt:
            print("[stopped]", file=sys.stderr)
        except InferError as error:
            tell(explained(error, local))
    print(file=sys.stderr)
    return 0


def lines(prompt: str) -> Iterator[str]:
    """What a person types, until the end of input; with the arrow keys and a history where Python has them."""
    if importlib.util.find_spec("readline"):
        importlib.import_module("readline")
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line:
            yield line


class Conversation:
    """What both sides have said so far, and the next turn."""

    def __init__(self, client: Client, args: argparse.Namespace) -> None:
        self._client, self._args = client, args
        self._messages: list[dict[str, str]] = []
        self.clear()

    def clear(self) -> None:
        self._messages = [{"role": "system", "content": self._args.system}] if self._args.system else []

    def ask(self, text: str) -> None:
        """Print the answer as it comes, and what it cost on stderr. A turn that fails is not remembered, a stopped one is."""
        question = {"role": "user", "content": text}
        stream = self._client.stream(
            messages=[*self._messages, question], max_tokens=self._args.max_tokens, temperature=self._args.temperature
        )
        parts: list[str] = []
        try:
            with stream:
                for delta in stream:
                    parts.append(delta.text)
                    print(delta.text, end="", flush=True)
        except KeyboardInterrupt:
            self._remember(question, parts)
            raise
        finally:
            print(end="\n" if parts else "", flush=True)
        self._remember(question, parts)
        usage = stream.usage
        assert usage is not None
        print(
            f"[{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them cached; {usage.output_tokens} out; "
            f"{stream.finish_reason}]",
            file=sys.stderr,
        )

    def _remember(self, question: dict[str, str], parts: list[str]) -> None:
        if parts:
            self._messages += [question, {"role": "assistant", "content": "".join(parts)}]


def tell(text: str) -> None:
    print(f"inferengine chat: {text}", file=sys.stderr)


def explained(error: InferError, local: bool) -> str:
    if isinstance(error, ConnectionLost) and local:
        return f"{error}; `inferengine status` tells whether it is served"
    return str(error)


def _seconds(text: str) -> float:
    try:
        if 0 < (seconds := float(text)) <= 3600:
            return seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"got {text!r}; must be seconds, more than 0 and at most 3600")
