"""Renews the leases of running requests and settles each reservation exactly once, also while the store is away for a moment.

In flow reservations, and what each has used; out flow renewals and settlements. A store that stays away longer is left to the
lease: the tenant's concurrency comes back when it expires, and the sweep closes what was held.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from infer_server.quota.errors import QuotaUnavailable
from infer_server.quota.reservation import Reservation, Use
from infer_server.quota.store import QuotaStore

log = logging.getLogger(__name__)

RENEW_SECONDS = 15.0
"""A quarter of the store's lease: three renewals may fail."""
BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
COMPLAIN_SECONDS = 10.0
PATIENCE_SECONDS = 0.5
"""How long a client's END waits for the settlement: so that whoever has seen END has its concurrency back."""


@dataclass(frozen=True, slots=True)
class Held:
    reservation: Reservation
    used: Callable[[], Use]
    """What the request used so far."""
    on_lost: Callable[[], None]
    """The store has given the lease up."""


class Leases:
    """Owned by the gateway. `hold` and `settle` come in pairs."""

    def __init__(self, store: QuotaStore) -> None:
        self._store = store
        self._held: dict[str, Held] = {}
        """By the reservation's request id."""
        self._settling: set[asyncio.Task[None]] = set()
        self._complain_at = 0.0

    def hold(self, held: Held) -> None:
        self._held[held.reservation.request_id] = held

    async def settle(self, reservation: Reservation, use: Use) -> None:
        """Returns when settled, or after PATIENCE_SECONDS while it goes on behind."""
        self._held.pop(reservation.request_id, None)
        await asyncio.wait({self._begin(reservation, use)}, timeout=PATIENCE_SECONDS)

    def withdraw(self, tenant: str, request_id: str) -> None:
        """A reserve call had no answer. It may have taken effect all the same: give that back."""
        self._begin(Reservation(self._store, tenant, request_id, reserved_tokens=0, stop_at=0.0), Use())

    def _begin(self, reservation: Reservation, use: Use) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._settle_with_patience(reservation, use))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def run(self) -> None:
        """Renew, for ever: run it as a task."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            await self.renew()

    async def renew(self) -> None:
        by_tenant: dict[str, dict[str, Held]] = collections.defaultdict(dict)
        for request_id, held in self._held.items():
            by_tenant[held.reservation.tenant][request_id] = held
        for tenant, requests in by_tenant.items():
            try:
                renewal = await self._store.renew(tenant, {id: held.used() for id, held in requests.items()})
            except QuotaUnavailable as error:  # running requests go on within what they reserved
                log.warning("leases were not renewed: %s", error)
                return
            for request_id in renewal.lost & self._held.keys():
                self._held[request_id].on_lost()

    async def close(self, seconds: float) -> None:
        """Wait for the settlements under way."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=seconds)

    async def _settle_with_patience(self, reservation: Reservation, use: Use) -> None:
        for pause in (*BACKOFF_SECONDS, None):
            try:
                await reservation.settle(
                    computed_tokens=use.computed_tokens,
                    cached_tokens=use.cached_tokens,
                    output_tokens=use.output_tokens,
                )
                return
            except QuotaUnavailable as error:
                if pause is None:
                    self._complain(error)
                    return
                await asyncio.sleep(pause)
            except Exception:  # a failure here must not end a request that was served
                log.exception("a reservation could not be settled")
                return

    def _complain(self, error: QuotaUnavailable) -> None:
        """Once in a while: an outage leaves many of them, and clients decide how many."""
        now = time.monotonic()
        if now >= self._complain_at:
            self._complain_at = now + COMPLAIN_SECONDS
            log.error("reservations stay unsettled until their leases expire: %s", error)
