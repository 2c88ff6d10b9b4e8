"""How many threads compute on this machine, and how long they wait for each other by spinning.

In: the container's CPU quota. Out: settings of this process, for whoever owns it: the engine process, a benchmark. An engine
inside of someone else's process changes neither.
"""

from __future__ import annotations

import os
from pathlib import Path

SPIN_COUNT = 10_000
"""Turns of a loop, a fraction of a millisecond, which covers the gaps between the parts of a step. libgomp's own 300,000 keep
a core busy for milliseconds at each of a step's hundreds of barriers, as soon as another process holds the other core: measured,
1.5 to 5 times the CPU time for a decode step, 40 times for packing a weight. The best times, on free cores, are equal."""


def limit_spinning() -> None:
    """To be called before torch is imported: libgomp looks once. A value that the environment has is left alone."""
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def limit_threads(cgroup: Path = Path("/sys/fs/cgroup")) -> None:
    """Not more threads than the container has CPU time for: torch counts the node's cores. OMP_NUM_THREADS overrides."""
    import torch

    quota = cpu_quota(cgroup)
    if quota is not None and quota < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(quota)


def cpu_quota(cgroup: Path) -> int | None:
    """Whole CPUs that the container may use at once (cgroup v2), at least 1; None where there is no limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError):
        return None
