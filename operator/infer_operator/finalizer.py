"""A resource that is being deleted in; nothing of it left behind, then it may go. Level-triggered like the rest.

F1. Before anything of a resource enters a store, the resource has our finalizer: then it can't go without us.
F2. The order: endpoints close (a document without tenants), copies of Secrets in other namespaces go, pods drain and end, the
    store's keys go, the finalizer goes. The garbage collector deletes the objects, which the resource owns.
F3. It ends also if the store never answers again (deleted first, with its namespace say), or what tells of it is damaged: after
    PATIENCE_SECONDS the resource goes, and the sweep deletes the keys if that store comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

import msgspec

from infer_operator.backends import copies
from infer_operator.backends.tenants import is_owned
from infer_operator.builders import configmap, secret
from infer_operator.builders import manifest as m
from infer_operator.cluster import Cluster
from infer_operator.kube import CONFIG_MAP, DEPLOYMENT, POD, RESOURCE, SECRET, ApiError, Object
from infer_operator.state import Key, Resource
from infer_server.contract.document import DesiredState, Version
from infer_server.contract.store import DocumentStore, RevisionConflictError, StoreUnavailableError

log = logging.getLogger(__name__)

FINALIZER = "inferengine.dev/purge"
PATIENCE_SECONDS = 600.0
POD_MARGIN_SECONDS = 60.0
"""beyond the drain, for pods to end"""
LOOK_AGAIN_SECONDS = 5.0


async def ensure(cluster: Cluster, raw: Object) -> Object:
    """The resource with our finalizer: keeps F1."""
    held = raw["metadata"].get("finalizers") or []
    return raw if FINALIZER in held else await _patch(cluster, raw, [*held, FINALIZER])


async def release(cluster: Cluster, raw: Object) -> None:
    held = raw["metadata"].get("finalizers") or []
    if FINALIZER not in held:
        return
    rest = [name for name in held if name != FINALIZER]
    try:
        await _patch(cluster, raw, rest)
    except ApiError as error:
        if error.status != 404:
            raise
        rest = []
    if not rest:  # gone with that, while the answer still shows it
        cluster.store.drop(RESOURCE, raw)


async def _patch(cluster: Cluster, raw: Object, finalizers: list[str]) -> Object:
    """With the resourceVersion that was read: the list is replaced, and another's entry must not be lost."""
    meta = raw["metadata"]
    patch = {"metadata": {"resourceVersion": meta["resourceVersion"], "finalizers": finalizers}}
    patched = await cluster.kube.merge(RESOURCE, meta["namespace"], meta["name"], patch)
    cluster.store.put(RESOURCE, patched)
    return patched


class Farewell:
    """One run for a resource that is being deleted."""

    def __init__(self, cluster: Cluster, key: Key, raw: Object, resource: Resource, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._key = key
        self._raw = raw
        self._resource = resource
        asked = datetime.fromisoformat(raw["metadata"]["deletionTimestamp"])
        self._seconds = clock() - asked.timestamp()
        """since it was deleted"""

    async def run(self) -> float | None:
        """After how many seconds to look again; None: it is released. Raises StoreUnavailableError while F3 allows to wait."""
        if FINALIZER not in (self._raw["metadata"].get("finalizers") or []):
            return None
        try:
            documents = await self._documents()
            if documents is not None:
                await self._close_endpoints(documents)
        except (StoreUnavailableError, RevisionConflictError) as error:
            self._give_up_or_raise(error)
            documents = None
        except (msgspec.DecodeError, secret.SecretDamagedError) as error:  # its owner can mend them, or wait: F3
            self._give_up_or_raise(StoreUnavailableError(f"{type(error).__name__}: {error}"))
            documents = None
        await copies.take_back(self._cluster, self._key)
        if not await self._are_pods_gone():
            return LOOK_AGAIN_SECONDS
        if documents is not None:
            try:
                await self._purge()
            except StoreUnavailableError as error:
                self._give_up_or_raise(error)
        await release(self._cluster, self._raw)
        return None

    def _give_up_or_raise(self, error: Exception) -> None:
        if self._seconds < PATIENCE_SECONDS:
            raise error
        log.error("%s: deleted without cleaning its quota store: %s", self._key, error)

    async def _documents(self) -> DocumentStore | None:
        """None: its keys are gone, so nothing can be known of its store any more."""
        name = m.server_name(self._resource)
        known = self._cluster.stores.url(self._key)
        if known is None:
            found = await self._cluster.kube.read(SECRET, self._key.namespace, name)
            if found is None or not is_owned(found, self._resource.uid):
                return None
            self._cluster.secrets.expect(self._key, "deleted")
            known = await self._cluster.store_url(self._key, self._resource, secret.read_keys(found))
        return await self._cluster.stores.documents(self._key, known)

    async def _close_endpoints(self, documents: DocumentStore) -> None:
        stored = await documents.read()
        if stored is None or stored.version.uid != self._resource.uid or not stored.tenants:
            return
        ledger = self._cluster.store.children(self._key).get((CONFIG_MAP.name, configmap.ledger_name(self._key.name)))
        noted = configmap.read_ledger(ledger).document
        last = max(stored.version.revision, noted.version.revision if noted else 0)
        version = Version(uid=self._resource.uid, generation=self._resource.generation, revision=last + 1)
        empty = DesiredState(version=version, namespace=self._key.namespace, deployment=self._key.name)
        await documents.write(empty, stored.version.revision)

    async def _are_pods_gone(self) -> bool:
        """Ends the pods, which drain; their last words to the store come before its keys go."""
        children = self._cluster.store.children(self._key)
        found = children.get((DEPLOYMENT.name, m.server_name(self._resource)))
        if found is not None and is_owned(found, self._resource.uid) and "deletionTimestamp" not in found["metadata"]:
            meta = found["metadata"]
            await self._cluster.kube.delete(DEPLOYMENT, self._key.namespace, meta["name"], meta["uid"])
        if self._seconds > self._resource.deployment.spec.drain.seconds + POD_MARGIN_SECONDS:
            return True  # a node that is lost never tells that its pods are gone
        pods = [pod for (kind, _), pod in children.items() if kind == POD.name]
        return not any(pod["metadata"].get("labels", {}).get(m.COMPONENT_LABEL) == m.SERVER for pod in pods)

    async def _purge(self) -> None:
        url = self._cluster.stores.url(self._key)
        assert url is not None
        number = await self._cluster.stores.sweep(url).purge(self._key.namespace, self._key.name)
        log.info("%s: deleted; %d keys of its quota store with it", self._key, number)
