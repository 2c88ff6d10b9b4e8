"""`python -m infer_server serve|gateway|engine|store --config PATH`: the processes of one pod.

`serve` is the whole pod: the supervisor, which starts the others. Each loads only its own part.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import msgspec

from infer_server import config as pod_config
from infer_server.config import PodConfig

EXIT_CONFIG = 2


class StartError(Exception):
    """What keeps the process from starting, in one line."""


def main(argv: list[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        config = pod_config.load(args.config)
    except (OSError, msgspec.MsgspecError) as error:
        print(f"infer_server {args.process}: {args.config}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    logging.basicConfig(
        level=config.log_level, format=f"%(asctime)s %(levelname)s {args.process}: %(message)s", stream=sys.stderr
    )
    try:
        return start(args, config)
    except StartError as error:
        logging.getLogger(__name__).error("%s", error)
        return EXIT_CONFIG


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infer_server", description="The processes of one pod.")
    processes = parser.add_subparsers(dest="process", required=True)
    for name, text in (
        ("serve", "the whole pod"),
        ("gateway", "started by serve"),
        ("engine", "started by serve"),
        ("store", "an embedded quota store on the Unix socket of storeUrl"),
    ):
        process = processes.add_parser(name, help=text)
        process.add_argument("--config", type=Path, required=True, help="the pod's configuration, a JSON file")
        if name == "gateway":
            process.add_argument("--control-fd", type=int, required=True, help="socket to the supervisor")
        if name == "engine":
            process.add_argument("--link-fd", type=int, required=True, help="stream to the gateway")
    return parser.parse_args(argv)


def start(args: argparse.Namespace, config: PodConfig) -> int:
    match args.process:
        case "serve":
            from infer_server.front.supervisor import Supervisor

            return Supervisor(args.config, config).run()
        case "gateway":
            from infer_server.gateway import process

            return process.run(config, args.control_fd)
        case "engine":
            from infer_server import engine_host

            return engine_host.run(config, args.link_fd)
        case _:
            return run_store(config)


def run_store(config: PodConfig) -> NoReturn:
    from infer_engine.errors import ConfigError
    from infer_server.quota.embedded import run_embedded

    url = urlsplit(config.store_url)
    if url.scheme != "unix" or not url.path.endswith("/store.sock"):
        raise StartError(f"storeUrl: got {config.store_url!r}; an embedded store is at unix:///DIRECTORY/store.sock")
    try:
        run_embedded(Path(url.path).parent)
    except ConfigError as error:
        raise StartError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
