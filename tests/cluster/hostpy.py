"""Prints, as JSON, what a pod needs to run this clone's software out of the machine's own files.

In: the interpreter that runs this (the clone's virtual environment). Out: `container` and `volumes` to merge into a pod,
the `nodeSelector` that brings it to the real node, and `python`, the interpreter's path in the pod. Nothing is copied
into an image, so a change in the clone is in the next pod at once; all of it is mounted read-only, at the same paths.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

IMAGE = "inferengine.local/hostpy:1"
REPOSITORY = Path(__file__).resolve().parents[2]
CACHE_IN_POD = "/cache"


def mounted_paths() -> list[Path]:
    """The system, Python, virtual environment and clone, without those that lie inside another one."""
    installed = Path(os.path.realpath(sys.executable)).parents[1]
    wanted = sorted({Path("/usr"), Path(sys.base_prefix), installed, Path(sys.prefix), REPOSITORY})
    return [path for path in wanted if not any(path.is_relative_to(other) for other in wanted if other != path)]


def pod_fragment() -> dict[str, Any]:
    """What to merge into a pod's spec and into its container."""
    paths = {str(path): str(path) for path in mounted_paths()}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if (cache / "inferengine/models").is_dir():  # converted models, which a pod with a read-only root can't make
        paths[f"{CACHE_IN_POD}/inferengine/models"] = str(cache / "inferengine/models")
    names = {path: f"host-{number}" for number, path in enumerate(paths)}
    return {
        "python": str(Path(sys.prefix) / "bin" / "python"),
        "nodeSelector": {"type": "real"},
        "container": {
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "env": [
                {"name": "HOME", "value": "/tmp"},
                {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
                {"name": "PYTHONUNBUFFERED", "value": "1"},
                {"name": "XDG_CACHE_HOME", "value": CACHE_IN_POD},
            ],
            "volumeMounts": [
                *({"name": names[path], "mountPath": path, "readOnly": True} for path in paths),
                {"name": "tmp", "mountPath": "/tmp"},
            ],
        },
        "volumes": [
            *({"name": names[path], "hostPath": {"path": source}} for path, source in paths.items()),
            {"name": "tmp", "emptyDir": {}},
        ],
    }


if __name__ == "__main__":
    print(json.dumps(pod_fragment(), indent=2))
