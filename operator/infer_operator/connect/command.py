"""The command line of `inferengine connect`, and what is done with a tenant's credentials: a chat, a file, or an open port.

Keys pass to the chat through a pipe, and to a file that only its owner may read. They are in no argument, variable or log.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.metadata import entry_points
from pathlib import Path

from infer_operator.backends.state_dir import StateDir
from infer_operator.connect.access import Access, find_access
from infer_operator.connect.background import Background
from infer_operator.connect.cluster import Cluster, ConnectError, open_cluster
from infer_operator.connect.forwarder import HOST, Forwarder, can_be_reached

CONNECT_SECONDS = 60
"""how long a message of the chat waits: a pod that is being replaced is back by then, mostly"""
EXIT_INTERRUPTED = 130
CHAT_OPTIONS = ("system", "max_tokens", "temperature", "secret_key_file")


def connect(argv: list[str]) -> int:
    """Chat with a deployment on a cluster as one tenant, by kubeconfig."""
    args = parse(argv)
    try:
        with Background() as background:
            return _connect(args, background)
    except ConnectError as error:
        _tell(str(error))
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def parse(argv: list[str]) -> argparse.Namespace:
    """`prompt` is what follows `--`, as a list."""
    own, _, prompt = _split(argv)
    parser = argparse.ArgumentParser(
        prog="inferengine connect",
        description=connect.__doc__,
        usage="%(prog)s [DEPLOYMENT] --tenant TENANT [-n NAMESPACE] [options] [-- MESSAGE]",
        epilog="MESSAGE, after --, is sent alone; without it the chat is interactive. Where the endpoint cannot be reached "
        "directly, a local port is forwarded to a ready pod through the API server, and to another one when that ends.",
        allow_abbrev=False,
    )
    parser.add_argument("deployment", nargs="?", metavar="DEPLOYMENT", help="needed where several have this tenant")
    parser.add_argument("--tenant", required=True, help="name of the tenant, whose Secret is DEPLOYMENT.TENANT")
    parser.add_argument("-n", "--namespace", help="of the deployment (default: that of the context)")
    parser.add_argument("--context", help="of the kubeconfig (default: the current one)")
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="default: KUBECONFIG, or ~/.kube/config, or the pod's account"
    )
    instead = parser.add_argument_group("instead of a chat")
    instead.add_argument("--save", type=Path, metavar="FILE", help="write the credentials file for client libraries")
    instead.add_argument(
        "--forward", action="store_true", help="forward a local port until Ctrl-C; a file of --save names that port"
    )
    parser.add_argument(
        "--local-port",
        type=_port,
        metavar="PORT",
        help="forward from this one, also where the endpoint can be reached directly (default: any, where needed)",
    )
    talk = parser.add_argument_group("chat", "as in `inferengine chat`")
    talk.add_argument("--system", help="system message that opens the conversation")
    talk.add_argument("--max-tokens", type=int)
    talk.add_argument("--temperature", type=float)
    talk.add_argument("--secret-key-file", type=Path, metavar="FILE", help="where the tenant has keys of its own")
    args = parser.parse_args(own)
    args.prompt = prompt
    if prompt and (args.save or args.forward):
        parser.error("a message is for the chat, which --save and --forward leave out: drop either")
    return args


def _split(argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    place = argv.index("--") if "--" in argv else len(argv)
    return argv[:place], argv[place : place + 1], argv[place + 1 :]


def _connect(args: argparse.Namespace, background: Background) -> int:
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(_opened(args, background))
        namespace = args.namespace or cluster.namespace
        access = background.call(find_access(cluster.kube, namespace, args.deployment, args.tenant))
        if args.save and not args.forward:
            _save(args.save, access.credentials(), access.fields["endpoint"])
            return 0
        endpoint = access.fields["endpoint"]
        wanted = args.forward or args.local_port is not None
        if wanted or not background.call(can_be_reached(access)):
            forwarder = Forwarder(cluster, access, _tell)
            port = background.call(forwarder.start(args.local_port or 0))
            stack.callback(lambda: background.call(forwarder.stop()))
            endpoint = f"tcp://{HOST}:{port}"
        if args.forward:
            return _keep_forwarding(args, access, endpoint)
        return chat(args, access.credentials(endpoint))


@contextlib.contextmanager
def _opened(args: argparse.Namespace, background: Background) -> Iterator[Cluster]:
    """Opened and closed on the loop that uses it."""
    stack = AsyncExitStack()
    cluster = background.call(stack.enter_async_context(open_cluster(args.kubeconfig, args.context)))
    try:
        yield cluster
    finally:
        background.call(stack.aclose())


def _keep_forwarding(args: argparse.Namespace, access: Access, endpoint: str) -> int:
    if args.save:
        _save(args.save, access.credentials(endpoint), endpoint)
    print(f"Forwarding {endpoint} to {access.deployment} for {access.tenant}; Ctrl-C ends it", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print(file=sys.stderr)
    return 0


def _save(file: Path, content: bytes, endpoint: str) -> None:
    try:
        StateDir(file.parent).write(file.name, content)  # whole, and readable by its owner only
    except OSError as error:
        raise ConnectError(f"--save {file}: {error.strerror}") from error
    print(f"Wrote {file}: the credentials for {endpoint}", flush=True)


def chat(args: argparse.Namespace, credentials: bytes, connect_seconds: float = CONNECT_SECONDS) -> int:
    """The chat is another package's command; it reads a file, which here is the end of a pipe."""
    found = entry_points(group="inferengine.commands", name="chat")
    reader, writer = os.pipe()
    os.write(writer, credentials)  # some 300 bytes; a pipe holds 4096 at least
    os.close(writer)
    options = [(f"--{name.replace('_', '-')}", getattr(args, name)) for name in CHAT_OPTIONS]
    given = [f"{option}={value}" for option, value in options if value is not None]
    try:
        command = found["chat"].load()
        code: int = command(
            [f"--credentials=/dev/fd/{reader}", f"--connect-timeout={connect_seconds}", *given, "--", *args.prompt]
        )
        return code
    finally:
        os.close(reader)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}; must be an integer from 0 to 65535")
    return int(text)


def _tell(text: str) -> None:
    """Without what would steer the terminal: statuses repeat what pods say."""
    shown = "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)
    print(f"inferengine connect: {shown}", file=sys.stderr, flush=True)
