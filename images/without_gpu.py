"""Takes NVIDIA's libraries that a machine without a GPU never opens out of the environment that this runs in.

A torch that is built for CUDA is linked with some of them and does not start without those; the process's memory map says
which. The others are opened when a GPU is used, and are half of the whole.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch


def main() -> None:
    torch.ones(8, 8) @ torch.ones(8, 8)
    mapped = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    packages = Path(sysconfig.get_path("purelib"))
    unused = [path for path in (packages / "nvidia").rglob("*") if path.is_file() and str(path.resolve()) not in mapped]
    for path in [*unused, *packages.glob("torch/include/**/*.h")]:
        path.unlink()


if __name__ == "__main__":
    main()
