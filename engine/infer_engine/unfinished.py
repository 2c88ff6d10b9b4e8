"""The requests that have not had their last event, and whether there is room for one more.

In: requests as they come and end. Out: QueueFullError, or a place. The queue is everybody's, but no flood of one tenant shuts
the others out: a tenant that holds less than its part of a full queue still gets in.
"""

from __future__ import annotations

from collections import Counter

from infer_engine.errors import QueueFullError
from infer_engine.scheduler.sequence import Sequence

MAX_OVERFLOW = 2
"""So many times the limit are never exceeded, however many tenants come to a queue that one has filled."""


class Unfinished:
    """Not thread-safe: the engine holds its queue mutex around each call."""

    def __init__(self, max_batch_size: int, max_queue_size: int) -> None:
        self._limit = max_batch_size + max_queue_size
        self._reason = (
            f"{self._limit} requests are unfinished (max_batch_size {max_batch_size} + max_queue_size {max_queue_size})"
        )
        self._sequences: dict[int, Sequence] = {}
        self._by_tenant: Counter[str] = Counter()

    def add(self, sequence: Sequence) -> None:
        """Raises QueueFullError."""
        total = len(self._sequences)
        if total >= self._limit and not (
            total < MAX_OVERFLOW * self._limit and self._is_below_its_part(sequence.tenant)
        ):
            raise QueueFullError(f"{self._reason}: try again later, or raise max_queue_size")
        self._sequences[sequence.request_id] = sequence
        self._by_tenant[sequence.tenant] += 1

    def remove(self, request_id: int) -> None:
        tenant = self._sequences.pop(request_id).tenant
        self._by_tenant[tenant] -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]

    def take_all(self) -> list[Sequence]:
        sequences = list(self._sequences.values())
        self._sequences.clear()
        self._by_tenant.clear()
        return sequences

    def _is_below_its_part(self, tenant: str) -> bool:
        """Of those that hold any, and itself."""
        num_tenants = len(self._by_tenant.keys() | {tenant})
        return self._by_tenant.get(tenant, 0) < self._limit // num_tenants
