"""A resource that is deleted goes, whatever became of what the operator had noted about it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from infer_operator.builders import Context
from infer_operator.builders.configmap import ledger_name
from infer_operator.cluster import Cluster
from infer_operator.finalizer import FINALIZER, PATIENCE_SECONDS, Farewell
from infer_operator.kube import CONFIG_MAP, RESOURCE, Kind, Object
from infer_operator.metrics import Metrics
from infer_operator.spec import from_server
from infer_operator.state import Key, Resource
from infer_operator.store import Store
from infer_server.contract.document import DesiredState, TenantEntry, Version
from infer_server.contract.store import StoreUnavailableError

KEY = Key("team", "demo")
RAW: Object = {
    "apiVersion": RESOURCE.api_version,
    "kind": RESOURCE.name,
    "metadata": {
        "namespace": "team",
        "name": "demo",
        "uid": "u",
        "generation": 2,
        "resourceVersion": "7",
        "deletionTimestamp": "2026-01-01T00:00:00+00:00",
        "finalizers": [FINALIZER],
    },
    "spec": {"model": {"uri": "/m", "name": "m"}, "tenants": [{"name": "acme"}]},
}
DELETED_AT = 1767225600.0


class Server:
    """What becomes of the finalizer."""

    def __init__(self) -> None:
        self.finalizers = [FINALIZER]

    async def merge(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        self.finalizers = patch["metadata"]["finalizers"]
        return RAW | {"metadata": RAW["metadata"] | {"finalizers": self.finalizers, "resourceVersion": "9"}}


@pytest.fixture
async def cluster(valkey: Any) -> AsyncIterator[Cluster]:
    store = Store(lambda key, lane: None)
    cluster = Cluster(Server(), store, Context(image="i"), Metrics())  # type: ignore[arg-type]
    cluster.stores.operator_id = "me"
    documents = await cluster.stores.documents(KEY, valkey.url)
    entry = TenantEntry(name="acme", uid="t", port=20000, public_keys=("k" * 40,))
    version = Version(uid="u", generation=1, revision=1)
    await documents.write(DesiredState(version=version, namespace="team", deployment="demo", tenants=(entry,)), 0)
    labels = {"inferengine.dev/deployment": "demo"}
    meta = {"namespace": "team", "name": ledger_name("demo"), "resourceVersion": "3", "labels": labels}
    store.put(CONFIG_MAP, {"metadata": meta, "data": {"tenants.json": "{"}})
    store.put(RESOURCE, RAW)
    yield cluster
    await cluster.stores.close()


def farewell(cluster: Cluster, seconds: float) -> Farewell:
    resource = Resource(uid="u", generation=2, deployment=from_server(RAW))
    return Farewell(cluster, KEY, RAW, resource, lambda: DELETED_AT + seconds)


async def test_a_damaged_ledger_holds_nobody_for_ever(cluster: Cluster) -> None:
    with pytest.raises(StoreUnavailableError):
        await farewell(cluster, PATIENCE_SECONDS - 1).run()
    assert cluster.kube.finalizers == [FINALIZER]  # type: ignore[attr-defined]
    assert await farewell(cluster, PATIENCE_SECONDS + 1).run() is None
    assert cluster.kube.finalizers == []  # type: ignore[attr-defined]
