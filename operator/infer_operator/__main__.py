"""`python -m infer_operator up|status …`: the operator's commands without the server's dispatcher."""

from __future__ import annotations

import sys

from infer_operator import commands


def main(argv: list[str]) -> int:
    known = {"up": commands.up, "status": commands.status}
    if not argv or argv[0] not in known:
        print(f"usage: python -m infer_operator {{{','.join(known)}}} ...", file=sys.stderr)
        return 2
    return known[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
