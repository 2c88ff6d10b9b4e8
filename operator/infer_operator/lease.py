"""One leader among the operators of a cluster: a Lease and a clock in, work that runs only while we lead out.

After client-go's leader election. A holder is judged by our own clock, from the moment when we saw its last renewal: clocks of
two machines are never compared.

L1. We stop before another may start: RENEW_WITHIN + ATTEMPT + RETRY < DURATION.
L2. Every write carries the resourceVersion that was read, so of two that try at once one fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from infer_operator.kube import LEASE, ApiError, Kind, KubeError, Object

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    duration: int = 15
    renew_within: float = 8
    """How long we lead without a renewal that succeeded."""
    attempt: float = 4
    retry: float = 2

    def __post_init__(self) -> None:
        assert self.renew_within + self.attempt + self.retry < self.duration, "L1"


class Server(Protocol):
    """The part of kube.Kube that is needed here."""

    async def read(self, kind: Kind, namespace: str, name: str) -> Object | None: ...

    async def create(self, manifest: Object, kind: Kind) -> Object: ...

    async def replace(self, manifest: Object, kind: Kind) -> Object: ...


class Lease:
    """Our part in one Lease. `hold()` once; then `uid` tells which Lease it is."""

    def __init__(
        self,
        kube: Server,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing = Timing(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timing = timing
        self._clock = clock
        self._seen: tuple[str, str] | None = None
        """holder and time of its renewal, as last read"""
        self._seen_at = 0.0
        self.uid = ""

    async def hold(self, work: Callable[[], Awaitable[None]], on_change: Callable[[bool], None]) -> bool:
        """Run `work` while we lead. Returns True when it ended by itself, False when the lease was lost; then it is cancelled.

        What `work` raises is raised. A lease that we still have at the end is given back, so that another need not wait.
        """
        task: asyncio.Future[None] | None = None
        renewed = 0.0
        try:
            while task is None or not (task.done() or self._clock() - renewed > self._timing.renew_within):
                started = self._clock()
                if await self._attempt():
                    renewed = started  # not now: the answer may have taken long
                    if task is None:
                        log.info("leading as %s", self._identity)
                        on_change(True)
                        task = asyncio.ensure_future(work())
                if task is None:
                    await asyncio.sleep(self._timing.retry)
                else:
                    await asyncio.wait([task], timeout=self._timing.retry)
            if not task.done():
                log.error("the lease could not be renewed for %g s: another may lead now", self._timing.renew_within)
                return False
            task.result()
            return True
        finally:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
                on_change(False)
                await self._give_back()

    async def _attempt(self) -> bool:
        try:
            async with asyncio.timeout(self._timing.attempt):
                return await self.try_once()
        except (KubeError, TimeoutError) as error:
            log.warning("lease %s/%s: %s", self._namespace, self._name, error or "no answer in time")
            return False

    async def try_once(self) -> bool:
        """Take or renew the lease, if we may: whether we have it for another duration. Raises KubeError."""
        lease = await self._kube.read(LEASE, self._namespace, self._name)
        now = _stamp()
        if lease is None:
            made = await self._kube.create(self._manifest(now, now), LEASE)
            self.uid = made["metadata"]["uid"]
            return True
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder != self._identity and holder and not self._is_stale(holder, spec.get("renewTime") or ""):
            return False
        since = spec.get("acquireTime") if holder == self._identity else None
        wanted = self._manifest(since or now, now)["spec"]
        wanted["leaseTransitions"] = (spec.get("leaseTransitions") or 0) + (holder != self._identity)
        try:
            await self._kube.replace(lease | {"spec": wanted}, LEASE)  # keeps L2
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        self.uid = lease["metadata"]["uid"]
        return True

    def _is_stale(self, holder: str, renewed: str) -> bool:
        if self._seen != (holder, renewed):
            self._seen, self._seen_at = (holder, renewed), self._clock()
        return self._clock() - self._seen_at >= self._timing.duration

    def _manifest(self, acquired: str, renewed: str) -> Object:
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": self._timing.duration,
                "acquireTime": acquired,
                "renewTime": renewed,
            },
        }

    async def _give_back(self) -> None:
        with contextlib.suppress(KubeError, TimeoutError):
            async with asyncio.timeout(self._timing.attempt):
                lease = await self._kube.read(LEASE, self._namespace, self._name)
                if lease is not None and (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                    await self._kube.replace(lease | {"spec": lease["spec"] | {"holderIdentity": ""}}, LEASE)


def _stamp() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
