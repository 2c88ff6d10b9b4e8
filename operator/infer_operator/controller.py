"""A key in, the resource of that name brought one run nearer to what it says: what a cluster needs around the shared reconciler.

Which of four cases it is, is read from what is there: gone, being deleted, not understood, or to be reconciled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from infer_operator import finalizer
from infer_operator.backends import copies
from infer_operator.backends.kubernetes import KubernetesBackend, write_status
from infer_operator.backends.protocol import RefusedError
from infer_operator.backends.tenants import is_owned
from infer_operator.builders import configmap
from infer_operator.cluster import Cluster
from infer_operator.endpoints import PortsExhaustedError
from infer_operator.kube import CONFIG_MAP, Object
from infer_operator.reconcile import reconcile
from infer_operator.spec import SpecError, from_server
from infer_operator.state import Key, Resource
from infer_server.contract.store import StoreUnavailableError

log = logging.getLogger(__name__)


class WaitingError(Exception):
    """The rest waits for something that no event may tell of: look again, ever later. No failure of ours."""

    expected = True


class Controller:
    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.time) -> None:
        self._cluster = cluster
        self._clock = clock

    async def reconcile(self, key: Key) -> float | None:
        """After how many seconds to look again; None: when something happens. Raises what is to be tried again."""
        started = time.monotonic()
        result = "failed"
        try:
            again = await self._reconcile(key)
            result = "done"
            return again
        except WaitingError:
            result = "waiting"
            raise
        finally:
            self._cluster.metrics.reconcile_seconds.labels(result).observe(time.monotonic() - started)

    async def _reconcile(self, key: Key) -> float | None:
        raw = self._cluster.store.resource(key)
        if raw is None:
            await self._gone(key)
            return None
        try:
            meta = raw["metadata"]
            resource = Resource(uid=meta["uid"], generation=meta["generation"], deployment=from_server(raw))
        except SpecError as error:
            await self._not_understood(key, raw, error)
            return None
        if "deletionTimestamp" in raw["metadata"]:
            try:
                return await finalizer.Farewell(self._cluster, key, raw, resource, self._clock).run()
            except StoreUnavailableError as error:
                raise WaitingError(f"deletion waits for the quota store: {error}") from error
        raw = await finalizer.ensure(self._cluster, raw)
        return await self._bring_nearer(key, raw, resource)

    async def _gone(self, key: Key) -> None:
        """The garbage collector deletes what it owned. If somebody took our finalizer away, keys are left in its store."""
        await copies.take_back(self._cluster, key)
        url = self._cluster.stores.url(key)
        if url is not None:
            self._cluster.stores.leave(key)
            await self._sweep(url)
        await self._cluster.forget(key)

    async def _bring_nearer(self, key: Key, raw: Object, resource: Resource) -> float | None:
        backend = KubernetesBackend(self._cluster, key, raw, resource)
        try:
            await backend.prepare()
            outcome = await reconcile(key, backend, clock=self._clock)
        except (RefusedError, PortsExhaustedError) as error:  # nothing else can be done before that is mended
            why = ("Blocked", str(error))
            await self._tell(raw, {"Degraded": ("True", *why), "Stalled": ("True", *why), "Ready": ("False", *why)})
            raise WaitingError(str(error)) from error
        await backend.pods.label()
        if outcome.retry:
            raise WaitingError("waits for the quota store, or for an object that was refused; its status says which")
        return 0.0 if backend.learned_endpoints else outcome.look_again

    async def _not_understood(self, key: Key, raw: Object, error: SpecError) -> None:
        """A resource of another version of its schema, say: what runs goes on, and the resource may be deleted."""
        if "deletionTimestamp" in raw["metadata"]:
            log.error("%s: deleted without cleaning its quota store, for it is not understood: %s", key, error)
            await finalizer.release(self._cluster, raw)
            return
        why = ("Invalid", "\n".join(error.errors))
        await self._tell(raw, {"Accepted": ("False", *why), "Stalled": ("True", *why), "Ready": ("False", *why)})

    async def _tell(self, raw: Object, conditions: Mapping[str, tuple[str, str, str]]) -> None:
        """Into its status, if it is news."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        status = with_conditions(raw.get("status", {}), raw["metadata"]["generation"], conditions, now)
        if status != raw.get("status"):
            await write_status(self._cluster, raw, status)

    # --- the sweep of the stores -------------------------------------------------------------------------------------
    async def sweep_stores(self) -> None:
        """Delete what resources left in stores that went without their finalizer, and tenants that left."""
        for url in self._cluster.stores.urls():
            await self._sweep(url)

    async def _sweep(self, url: str) -> None:
        reached = False
        try:
            number = await self._cluster.stores.sweep(url).sweep(self._live)
            reached = True
            self._cluster.metrics.swept_keys.inc(number)
            if number:
                log.info("%d keys without an owner deleted from a quota store", number)
        except (
            Exception
        ) as error:  # a namespace's owner runs it: whatever it answers, the others are swept all the same
            log.warning("a quota store could not be swept: %s: %s", type(error).__name__, error)
        await self._cluster.stores.swept(url, reached=reached)

    def _live(self) -> dict[tuple[str, str], list[str]]:
        """The ledger names a tenant before anything of it enters the store."""
        live: dict[tuple[str, str], list[str]] = {}
        for raw in self._cluster.store.resources():
            meta = raw["metadata"]
            key = Key(meta["namespace"], meta["name"])
            found = self._cluster.store.children(key).get((CONFIG_MAP.name, configmap.ledger_name(key.name)))
            named = [tenant["name"] for tenant in raw["spec"].get("tenants", ())]
            if found is not None and is_owned(found, meta["uid"]):
                named += configmap.read_ledger(found).given
            live[key.namespace, key.name] = named
        return live


def with_conditions(
    status: Mapping[str, Any], generation: int, told: Mapping[str, tuple[str, str, str]], now: datetime
) -> Object:
    """The status with these conditions; all else in it stays, and so does the time of a condition that keeps its status."""
    known = {condition["type"]: condition for condition in status.get("conditions", ())}
    for type, (value, reason, message) in told.items():
        before = known.get(type, {})
        same = before.get("status") == value
        known[type] = {
            "type": type,
            "status": value,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": before["lastTransitionTime"] if same else now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    return {**status, "observedGeneration": generation, "conditions": list(known.values())}
