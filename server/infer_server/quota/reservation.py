"""The values that the quota store hands out: a reservation and its end, a renewal, and a tenant's usage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infer_server.contract.document import QuotaLimits

if TYPE_CHECKING:
    from infer_server.quota.store import QuotaStore


@dataclass(frozen=True, slots=True)
class Use:
    """Tokens of one request so far. computed: prompt tokens that the model computed for the first time; cached: prompt tokens
    that the prefix cache gave. Tokens computed again after a preemption are in neither."""

    computed_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be 0 or more")


@dataclass(frozen=True, slots=True)
class Settlement:
    charged_tokens: int
    """in all, for this request"""
    uncharged_tokens: int
    """used, and not charged for lack of room: the audit has them. 0 in the ordinary case"""


@dataclass(frozen=True, slots=True)
class Renewal:
    stop_at: float
    """time.monotonic() at which the renewed leases end"""
    lost: frozenset[str]
    """request ids that hold no lease any more: end them"""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens set aside for one request, until it is settled or, its lease expired, swept."""

    store: QuotaStore
    tenant: str
    request_id: str
    reserved_tokens: int
    stop_at: float
    """time.monotonic() at which the lease ends unless it is renewed; counted from before the call, so never too late"""

    async def settle(self, *, computed_tokens: int, cached_tokens: int, output_tokens: int) -> Settlement:
        """Charges what was used and gives the rest back. Idempotent: only the first call counts."""
        return await self.store.settle(self.tenant, self.request_id, Use(computed_tokens, cached_tokens, output_tokens))


@dataclass(frozen=True, slots=True)
class Bucket:
    left: float
    """what may be taken at once, now"""
    burst: int
    per_minute: int


@dataclass(frozen=True, slots=True)
class Window:
    name: str
    """YYYYMMDD or YYYYMM, UTC"""
    used: int
    reserved: int
    limit: int | None
    resets_ms: int


@dataclass(frozen=True, slots=True)
class Usage:
    """One consistent look at a tenant's quota."""

    limits: QuotaLimits
    live: int
    """requests that count against max_concurrent_requests"""
    held: int
    """reservations whose lease expired, not yet settled or swept"""
    requests: Bucket | None
    tokens: Bucket | None
    day: Window
    month: Window
