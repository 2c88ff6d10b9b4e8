"""The platform on a cluster: how soon an edit is true for a tenant's client, and how many resources an operator keeps up with.

In: `--json FILE`, `--rounds N`, `--resources N`. It runs on the test cluster (tests/cluster), which it starts for its own time
if none runs; where none can run it says so and leaves the figures of last time alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from on_cluster import live, scale
from on_cluster.home import home

CLUSTER = Path(__file__).parents[1] / "tests/cluster"
OUR_KUBECONFIG = "/var/lib/inferengine-cluster/kubeconfig"
INSIDE = "INFERENGINE_BENCHMARK_IN_CLUSTER"
LEFT_OUT = 77
"""exit code: it can't run here, which is no failure"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resources", type=int, default=1000)
    parser.add_argument("--only", choices=("live", "scale"))
    args = parser.parse_args()
    if INSIDE not in os.environ:
        return enter_cluster()
    figures = asyncio.run(measure(args.rounds, args.resources, args.only))
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures))
    return 0


def enter_cluster() -> int:
    """The same command where Services and pods can be reached; or the reason why that is not possible."""
    lacking = what_is_lacking()
    if lacking:
        print(f"left out: {lacking}")
        return LEFT_OUT
    command = [str(CLUSTER / "on.sh"), sys.executable, *sys.argv]
    return subprocess.run(command, env=os.environ | {INSIDE: "1"}, check=False).returncode


def what_is_lacking() -> str:
    if os.environ.get("KUBECONFIG", OUR_KUBECONFIG) != OUR_KUBECONFIG:
        return "KUBECONFIG names a cluster whose pods can't run this clone: unset it"
    if os.geteuid() != 0:
        return "the test cluster needs root"
    return subprocess.run([CLUSTER / "requirements.sh"], capture_output=True, text=True, check=False).stderr.strip()


async def measure(rounds: int, resources: int, only: str | None) -> dict[str, object]:
    figures: dict[str, object] = {"load_at_start": [round(number, 1) for number in os.getloadavg()]}
    if only != "scale":
        async with home() as place:
            figures["edits"] = await live.measure(place, rounds)
    if only != "live":
        async with home() as place:
            figures["resources"] = await scale.measure(place, resources)
    return figures


if __name__ == "__main__":
    sys.exit(main())
