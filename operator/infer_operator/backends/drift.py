"""What is there and what is wanted in; where they differ out. Pure.

D1. What we don't say is others': defaults, fields of other owners, entries of lists that have names.
D2. What we no longer say goes: the hash of the last manifest is in an annotation, and another hash means to apply again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from infer_operator.kube import Object

APPLIED_ANNOTATION = "inferengine.dev/applied"

MAP_KEYS = ("name", "mountPath", "containerPort")
"""fields by which the API server tells entries of a list apart, in lists whose entries others may add to"""


def sealed(manifest: Object) -> Object:
    """With its own hash: keeps D2."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    meta = manifest["metadata"]
    annotations = meta.get("annotations", {}) | {APPLIED_ANNOTATION: digest}
    return manifest | {"metadata": meta | {"annotations": annotations}}


def differences(observed: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Paths of what is wanted and isn't there. Values are compared as they are: builders write what the server gives back."""
    if isinstance(wanted, dict):
        if not isinstance(observed, dict):
            yield path
            return
        for name, value in wanted.items():
            if name in observed:
                yield from differences(observed[name], value, f"{path}.{name}")
            elif value is not None:
                yield f"{path}.{name}"
    elif isinstance(wanted, list):
        yield from _list_differences(observed, wanted, path)
    elif observed != wanted or isinstance(observed, bool) is not isinstance(wanted, bool):
        yield path


def _list_differences(observed: Any, wanted: list[Any], path: str) -> Iterator[str]:
    if not isinstance(observed, list):
        yield path
        return
    key = next((key for key in MAP_KEYS if _is_map(wanted, key) and _is_map(observed, key)), None)
    if key is not None:
        there = {item[key]: item for item in observed}
        for item in wanted:
            yield from differences(there.get(item[key]), item, f"{path}[{item[key]}]")
    elif len(observed) != len(wanted):
        yield path
    else:
        for index, (seen, item) in enumerate(zip(observed, wanted, strict=True)):
            yield from differences(seen, item, f"{path}[{index}]")


def _is_map(items: list[Any], key: str) -> bool:
    """Whether each entry has that key, and each another: `name: x` in two rules of a policy is a list like any other."""
    keys = [item.get(key) for item in items if isinstance(item, dict)]
    return bool(items) and len(keys) == len(items) and None not in keys and len(set(map(str, keys))) == len(keys)
