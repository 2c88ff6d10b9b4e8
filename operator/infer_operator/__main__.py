"""`python -m infer_operator up|status|operator ...`: the operator's commands without the server's dispatcher."""

from __future__ import annotations

import sys

from infer_operator import commands

NAMES = ("operator", "status", "up")


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in NAMES:
        print(f"usage: python -m infer_operator {{{','.join(NAMES)}}} ...", file=sys.stderr)
        return 2
    if argv[0] == "operator":  # the only one that needs kopf and the Kubernetes client
        from infer_operator.main import operator

        return operator(argv[1:])
    return {"status": commands.status, "up": commands.up}[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
