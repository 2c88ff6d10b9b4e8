"""A tenant's Secret in another namespace: the copy, and a note beside it that says whose it is. Pure.

No object may have an owner in another namespace. So the copy's owner is the note, a ConfigMap, which the operator finds by its
labels (Secrets are never listed): whatever happened to the resource, whoever deletes the note deletes the copy.

Both are called `<namespace>.<deployment>.<tenant>`, none of which has a dot: resources of two namespaces never share a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infer_operator.builders import manifest as m
from infer_operator.state import Resource

SOURCE_LABEL = f"{m.GROUP}/source-namespace"
"""on notes and copies: the resource's namespace"""
SOURCE_UID = f"{m.GROUP}/source-uid"
"""annotation of both: the resource's uid"""
CONSENT = f"{m.GROUP}/secrets-from"
"""annotation of a namespace: names of those whose resources may put Secrets into it, separated by commas"""
DATA = ("endpoint", "serverPublicKey", "clientPublicKey", "clientSecretKey")
"""of a tenant's Secret and its copies; the last two are absent where the tenant has keys of its own"""


def copy_name(resource: Resource, tenant: str) -> str:
    return f"{m.namespace(resource)}.{m.server_name(resource)}.{tenant}"


def note(resource: Resource, tenant: str, namespace: str) -> m.Manifest:
    data = {
        "source": f"InferenceDeployment {m.namespace(resource)}/{m.server_name(resource)}, tenant {tenant}",
        "about": "owner of the Secret of this name: deleted, both come back while the source wants them and this namespace "
        f"allows them by its annotation {CONSENT}",
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(resource, tenant, namespace), "data": data}


def copy(resource: Resource, tenant: str, note: Mapping[str, Any], data: Mapping[str, str]) -> m.Manifest:
    """`note` as the API server holds it; `data` as in the tenant's own Secret."""
    metadata = _metadata(resource, tenant, note["metadata"]["namespace"])
    meta = note["metadata"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": meta["name"], "uid": meta["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata | {"ownerReferences": [owner]},
        "type": "Opaque",
        "data": {name: data[name] for name in DATA if name in data},
    }


def is_from(found: Mapping[str, Any], uid: str) -> bool:
    """Whether a note or a copy is of the resource with this uid."""
    return (found["metadata"].get("annotations") or {}).get(SOURCE_UID) == uid


def allows(namespace: Mapping[str, Any], source: str) -> bool:
    """Whether the namespace's owner lets resources of `source` put Secrets into it."""
    annotation = (namespace["metadata"].get("annotations") or {}).get(CONSENT, "")
    return source in [name.strip() for name in annotation.split(",")]


def _metadata(resource: Resource, tenant: str, namespace: str) -> dict[str, Any]:
    return {
        "name": copy_name(resource, tenant),
        "namespace": namespace,
        "labels": m.labels(resource, "server", tenant) | {SOURCE_LABEL: m.namespace(resource)},
        "annotations": {SOURCE_UID: resource.uid},
    }
