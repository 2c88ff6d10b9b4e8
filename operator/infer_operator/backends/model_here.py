"""A deployment file in, the deployment out, if this machine has what its model's address names.

On a cluster only the pods can tell. Here it is known before a pod is started, or a pod that serves is stopped for it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from infer_operator import spec


def load(file: Path) -> spec.InferenceDeployment:
    """Raises spec.SpecError."""
    deployment = spec.load(file)
    mistake = _missing(deployment.spec.model.uri)
    if mistake:
        raise spec.SpecError([f"spec.model.uri: {mistake}"])
    return deployment


def _missing(uri: str) -> str:
    """What is not there; empty where it is, and where only a look at the hub would tell."""
    if uri.startswith("/") and not Path(uri).exists():
        return f"{uri}: no such file or directory; give a directory with config.json and .safetensors files, or a .gguf file"
    if uri.startswith("pvc://"):
        return f"{uri}: only a cluster has claims; on this machine give the model's directory, or a .gguf file"
    if uri.startswith("s3://") and not _is_installed("obstore"):
        return f"{uri}: needs the package obstore; install inferengine[s3]"
    package = uri.removeprefix("package://").partition("/")[0]
    if uri.startswith("package://") and not _is_installed(package):
        return f"{uri}: no Python package {package!r} is installed; install it, or give another model"
    return ""


def _is_installed(package: str) -> bool:
    try:
        return package.isidentifier() and importlib.util.find_spec(package) is not None
    except ValueError:  # __main__
        return False
