"""The objects of one resource on a cluster: manifests in, each applied only where it differs; what is not ours left alone.

One run of one resource. Objects that were seen come from the operator's store of watches; each answer goes back there.
"""

from __future__ import annotations

import logging

from infer_operator.backends.drift import differences
from infer_operator.backends.protocol import RefusedError
from infer_operator.backends.tenants import is_owned, taken
from infer_operator.builders.copies import is_from
from infer_operator.cluster import KINDS, Cluster
from infer_operator.kube import OPTIONAL, REFUSALS, ApiError, Kind, Object
from infer_operator.state import Content, Key

log = logging.getLogger(__name__)


class Applied:
    def __init__(self, cluster: Cluster, key: Key, uid: str) -> None:
        """`uid`: of the resource that owns them."""
        self._cluster = cluster
        self._kube = cluster.kube
        self._key = key
        self._uid = uid
        self.learned_endpoints = False
        """A Service was written just now: what it tells, such as its node port, is not in Secrets and status yet"""

    def child(self, kind: Kind, name: str) -> Object | None:
        return self._cluster.store.children(self._key).get((kind.name, name))

    def is_ours(self, found: Object) -> bool:
        """In another namespace nothing can have our resource for an owner: what is there names it in an annotation."""
        return is_owned(found, self._uid) or is_from(found, self._uid)

    def observed(self) -> dict[str, Object]:
        """Those of this very resource: what a namesake left is not ours to change or to delete."""
        return {
            f"{kind}/{name}": child
            for (kind, name), child in self._cluster.store.children(self._key).items()
            if kind in KINDS and self.is_ours(child)
        }

    def same(self, name: str, observed: Content, wanted: Content) -> bool:
        """Also where the API server keeps something of its own, whatever we apply."""
        gaps = tuple(differences(observed, wanted))
        if gaps and gaps != self._cluster.stubborn.get((self._key, name)):
            return False
        self._cluster.metrics.applies_skipped.labels(name.partition("/")[0]).inc()
        return True

    async def write(self, name: str, wanted: Object) -> None:
        """Raises RefusedError."""
        kind = KINDS[wanted["kind"]]
        known = self.child(kind, name.partition("/")[2])
        if known is not None and not self.is_ours(known):
            raise RefusedError(taken(kind.name, known))
        try:
            if known is None:
                applied = await self.create(kind, wanted)
            else:
                meta = wanted["metadata"] | {"uid": known["metadata"]["uid"]}  # a precondition
                applied = await self.apply(kind, wanted | {"metadata": meta})
        except ApiError as error:
            if error.status == 404 and kind in OPTIONAL:
                return  # its definition went this moment: whoever follows it will notice
            if error.status in REFUSALS:
                meta = wanted["metadata"]
                raise RefusedError(f"{kind.name} {meta['namespace']}/{meta['name']}: {error.message}") from error
            raise
        self.learned_endpoints |= kind.name == "Service" and applied["spec"].get("type") != "ClusterIP"
        self._note_gaps(name, applied, wanted)

    async def create(self, kind: Kind, wanted: Object) -> Object:
        """Server-side apply makes an object or changes one: so look first, and take no field that another has set meanwhile."""
        namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]
        found = await self._kube.read(kind, namespace, name)
        if found is not None and not self.is_ours(found):
            raise RefusedError(taken(kind.name, found))
        return await self.apply(kind, wanted, force=found is not None)

    async def apply(self, kind: Kind, wanted: Object, *, force: bool = True) -> Object:
        applied = await self._kube.apply(wanted, kind, force=force)
        self._cluster.metrics.applies_sent.labels(kind.name).inc()
        self._cluster.store.put(kind, applied)
        return applied

    def _note_gaps(self, name: str, applied: Object, wanted: Object) -> None:
        gaps = tuple(differences(applied, wanted))
        if not gaps:
            self._cluster.stubborn.pop((self._key, name), None)
        elif self._cluster.stubborn.get((self._key, name)) != gaps:
            log.warning("%s: %s: the API server keeps its own %s", self._key, name, ", ".join(gaps))
            self._cluster.stubborn[self._key, name] = gaps

    async def delete(self, title: str) -> None:
        kind_name, _, name = title.partition("/")
        found = self.child(KINDS[kind_name], name)
        if found is not None and "deletionTimestamp" not in found["metadata"]:
            meta = found["metadata"]
            await self._kube.delete(KINDS[kind_name], meta["namespace"], meta["name"], meta["uid"])
