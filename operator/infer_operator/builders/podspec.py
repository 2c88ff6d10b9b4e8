"""Parts that all our pods share: what the restricted Pod Security Standard asks for, volumes of secrets, canonical values.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infer_operator.quantity import canonical, canonical_amount

USER = 65532
"""neither root nor anyone on the node"""
SECRET_MODE = 0o440
"""Secrets belong to root and the pod's group"""


def pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def secret_volume(name: str, secret: str, files: dict[str, str]) -> dict[str, Any]:
    """files: key -> file name. Only what is named is mounted."""
    items = [{"key": key, "path": path} for key, path in files.items()]
    return {"name": name, "secret": {"secretName": secret, "defaultMode": SECRET_MODE, "items": items}}


def canonical_pod(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod's spec with every quantity as the API server will write it. What isn't one is left for the API server to refuse."""
    changed = dict(pod)
    for kind in ("containers", "initContainers"):
        if isinstance(pod.get(kind), list):
            changed[kind] = [_canonical_container(container) for container in pod[kind]]
    if isinstance(pod.get("volumes"), list):
        changed["volumes"] = [_canonical_volume(volume) for volume in pod["volumes"]]
    return changed


def _canonical_container(container: Any) -> Any:
    resources = container.get("resources") if isinstance(container, dict) else None
    if not isinstance(resources, dict):
        return container
    amounts = {
        kind: {name: _or_as_it_is(canonical_amount, value) for name, value in found.items()}
        if isinstance(found, dict)
        else found
        for kind, found in resources.items()
    }
    return container | {"resources": amounts}


def _canonical_volume(volume: Any) -> Any:
    directory = volume.get("emptyDir") if isinstance(volume, dict) else None
    if not isinstance(directory, dict) or "sizeLimit" not in directory:
        return volume
    return volume | {"emptyDir": directory | {"sizeLimit": _or_as_it_is(canonical, directory["sizeLimit"])}}


def _or_as_it_is(form: Callable[[Any], str], value: Any) -> Any:
    try:
        return form(value)
    except ValueError:
        return value
