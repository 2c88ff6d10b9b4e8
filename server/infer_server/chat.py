"""`inferengine chat`: a conversation with a served model from a terminal, as one tenant.

In: a credentials file (found by the tenant's name in a local deployment's state directory, or given). Out: streamed text.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from infer_server.client import Client, InferError


def state_home() -> Path:
    """Where local deployments keep their state (the XDG base directory specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "inferengine"


def find_credentials(tenant: str, state_dir: Path | None, deployment: str | None) -> Path:
    """The credentials file of `tenant` in a local deployment; FileNotFoundError says where it looked and what to do."""
    homes = [state_dir] if state_dir else sorted(p for p in state_home().glob(deployment or "*") if p.is_dir())
    found = [path for home in homes if (path := home / "credentials" / f"{tenant}.json").is_file()]
    if len(found) > 1:
        names = ", ".join(path.parent.parent.name for path in found)
        raise FileNotFoundError(f"tenant {tenant!r} is in several deployments ({names}): choose one with --deployment")
    if not found:
        looked = ", ".join(map(str, homes)) or str(state_home())
        raise FileNotFoundError(
            f"no credentials of tenant {tenant!r} in {looked}: is `inferengine up` running? Otherwise give --credentials FILE"
        )
    return found[0]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="inferengine chat", description=chat.__doc__)
    parser.add_argument("prompt", nargs="*", help="one message; without it, an interactive conversation")
    parser.add_argument("--tenant", help="tenant of a local deployment, whose credentials file is looked up")
    parser.add_argument("--deployment", help="name of the local deployment, where several have this tenant")
    parser.add_argument("--state-dir", type=Path, help="state directory of the deployment, where `up` was given one")
    parser.add_argument("--credentials", type=Path, help="credentials file")
    parser.add_argument("--system", help="system message that opens the conversation")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args(argv)
    if (args.tenant is None) == (args.credentials is None):
        parser.error("give either --tenant NAME or --credentials FILE")
    return args


def lines(prompt: str) -> Iterator[str]:
    """What a person types, until the end of input."""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line:
            yield line


def chat(argv: list[str]) -> int:
    """Chat with a served model as one tenant."""
    args = parse(argv)
    try:
        credentials = args.credentials or find_credentials(args.tenant, args.state_dir, args.deployment)
        messages = [{"role": "system", "content": args.system}] if args.system else []
        with Client.from_credentials(credentials) as client:
            interactive = not args.prompt and sys.stdin.isatty()
            said = [" ".join(args.prompt)] if args.prompt else lines("you> " if interactive else "")
            for text in said:
                messages.append({"role": "user", "content": text})
                messages.append({"role": "assistant", "content": _answer(client, messages, args)})
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"inferengine chat: {error}", file=sys.stderr)
        return 2
    except InferError as error:
        print(f"inferengine chat: {error}", file=sys.stderr)
        return 1
    return 0


def _answer(client: Client, messages: list[dict[str, str]], args: argparse.Namespace) -> str:
    """Print the answer as it comes, and what it cost on stderr; return it."""
    stream = client.stream(messages=messages, max_tokens=args.max_tokens, temperature=args.temperature)
    parts = []
    for delta in stream:
        parts.append(delta.text)
        print(delta.text, end="", flush=True)
    print()
    usage = stream.usage
    assert usage is not None
    print(
        f"[{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them cached; {usage.output_tokens} out; "
        f"{stream.finish_reason}]",
        file=sys.stderr,
    )
    return "".join(parts)
