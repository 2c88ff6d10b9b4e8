"""The pods of one resource on a cluster: which there are, which serve, and the labels by which tenants' Services find them."""

from __future__ import annotations

from infer_operator import endpoints
from infer_operator.builders import manifest as m
from infer_operator.builders import service
from infer_operator.cluster import Cluster
from infer_operator.kube import POD, ApiError, Object
from infer_operator.state import Key


class Pods:
    def __init__(self, cluster: Cluster, key: Key) -> None:
        self._cluster = cluster
        self._key = key

    def all(self, component: str = m.SERVER) -> list[Object]:
        """In one order, or a message that names some would change with each restart."""
        children = sorted(self._cluster.store.children(self._key).items())
        return [
            pod
            for (kind, _), pod in children
            if kind == POD.name and pod["metadata"].get("labels", {}).get(m.COMPONENT_LABEL) == component
        ]

    def ready(self) -> list[Object]:
        return [pod for pod in self.all() if is_ready(pod)]

    async def label(self) -> None:
        """Put each slot's label on the ready pods that are best for it. While none is ready, nothing changes: none is better."""
        pods = {pod["metadata"]["uid"]: pod for pod in self.ready()}
        for uid, slots in endpoints.assign_slots(pods).items():
            meta = pods[uid]["metadata"]
            wanted = {service.slot_label(slot) for slot in slots}
            has = {name for name in meta.get("labels", {}) if name.startswith(m.SLOT_LABEL_PREFIX)}
            labels = dict.fromkeys(wanted - has, "true") | dict.fromkeys(has - wanted)
            if labels:
                await self._patch(meta["name"], {"metadata": {"uid": uid, "labels": labels}})

    async def _patch(self, name: str, patch: Object) -> None:
        try:
            patched = await self._cluster.kube.merge(POD, self._key.namespace, name, patch)
        except ApiError as error:
            if error.status not in (404, 409):  # gone: its event is on the way
                raise
        else:
            self._cluster.store.put(POD, patched)


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]
