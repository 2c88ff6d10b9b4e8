"""Who gives way when slots run out: choices only, which the scheduler carries out.

In: running sequences, oldest admission first, and who needs slots. Out: the one to retract.

    P1  a tenant whose requests use no more than its minimum is never retracted for another: what else it holds is cached, and
        can be had without
    P2  a tenant at its own maximum is helped by its own requests only
    P3  of those that may be retracted, it is the youngest of the tenant that was served most
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ordered

from infer_engine.cache.shares import ShareGroup
from infer_engine.scheduler.sequence import Sequence


class Preemption:
    """most_served: of several tenants, the one that was; None where tenants mean nothing."""

    def __init__(
        self, group: Callable[[Sequence], ShareGroup], most_served: Callable[[Iterable[str]], str | None]
    ) -> None:
        self._group = group
        self._most_served = most_served

    def victim(self, sequence: Sequence, candidates: Ordered[Sequence]) -> Sequence:
        """For slots that `sequence`, one of the candidates, needs: perhaps itself."""
        own = [one for one in candidates if one.tenant == sequence.tenant]
        group = self._group(sequence)
        others = [] if group.is_full else self._givers(candidates, sequence.tenant)  # keeps P2
        chosen = others if others and group.is_within_minimum else [*own, *others]
        tenant = self._most_served({one.tenant for one in chosen})
        return next(one for one in reversed(candidates) if one in chosen and tenant in (None, one.tenant))  # keeps P3

    def giver(self, running: Ordered[Sequence], asker: str) -> Sequence | None:
        """For a request that `asker`'s minimum has room for: of the tenant most over its share the youngest."""
        givers = self._givers(running, asker)
        if not givers:
            return None
        most = max((self._group(one) for one in givers), key=lambda group: group.over)
        return next(one for one in reversed(givers) if one.tenant == most.name)

    def _givers(self, candidates: Ordered[Sequence], asker: str) -> list[Sequence]:
        return [
            one
            for one in candidates
            if one.tenant != asker and self._group(one).num_pinned > self._group(one).share.min_tokens
        ]  # keeps P1
