"""A user's podTemplate over ours, as a strategic merge of Kubernetes would do it. Pure.

Maps are merged key by key, null removes a key. Lists whose items have a name are merged item by item; of these a volume is
replaced whole, since its kind is one of its keys, and so is an environment variable. Other lists are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MERGED_BY = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
}
"""list -> what tells its items apart"""
REPLACED_WHOLE = ("volumes", "env")


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What is in `theirs` wins. Neither is changed."""
    merged = dict(ours)
    for name, value in theirs.items():
        before = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            merged[name] = merge(before if isinstance(before, Mapping) else {}, value)
        elif name in MERGED_BY and isinstance(before, list) and isinstance(value, list):
            merged[name] = _merge_lists(name, before, value)
        else:
            merged[name] = value
    return merged


def _merge_lists(name: str, ours: list[Any], theirs: list[Any]) -> list[Any]:
    """Ours in their order, then what only they have."""
    key = MERGED_BY[name]
    keyed = [item for item in theirs if isinstance(item, Mapping) and key in item]
    rest = [item for item in theirs if not (isinstance(item, Mapping) and key in item)]  # for the API server to refuse
    found = {item[key]: item for item in ours}
    for item in keyed:
        before = {} if name in REPLACED_WHOLE else found.get(item[key], {})
        found[item[key]] = merge(before, item)
    return [*found.values(), *rest]
