"""`python -m infer_server.quota.networked --directory D --port P --acl-file F`: the embedded store of a deployment in a cluster.

The same server as on one machine, on a TCP port for pods and the operator. Who may do what is in the ACL file, which comes
from a Secret: no password is in a command line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from infer_engine.errors import ConfigError
from infer_server.quota.embedded import run_networked


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infer_server.quota.networked", description="A store on a TCP port."
    )
    parser.add_argument("--directory", type=Path, required=True, help="its own, for its data")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--acl-file", type=Path, required=True, help="users, in the words of Valkey's ACL files")
    args = parser.parse_args(argv)
    try:
        run_networked(args.directory, args.port, args.acl_file)
    except (ConfigError, OSError) as error:
        print(f"infer_server.quota.networked: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
