"""Who holds how much of the KV pool, and who gives way when room is needed.

In: tokens that come and go, in the cache and in running requests, each counted to a share group (a tenant). Out: which group
pays for room that another asks for, and how much it may be asked for.

    held = cached + running          over = (held - min_tokens) / weight

The group that is most over pays first, its least recently used tokens before others. A group gives up its own tokens for
itself whatever it holds; for another one never so many that it would hold less than `min_tokens`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from infer_engine.config import Share

if TYPE_CHECKING:
    from infer_engine.cache.eviction import EvictionPolicy

TURN_TOKENS = 64
"""A group that pays gives at least so many before it is another's turn: one token each in turn would cut leaves to pieces."""

EvictionCause = Literal["pressure", "quota", "ttl", "purge"]
"""Room was needed, whoever needed it; the group was at its own max_tokens; nobody used it for too long; it was dropped."""


class ShareGroup:
    """One group's counters, and the order in which it pays. Kept from its first token on, so the counters only grow."""

    __slots__ = (
        "name",
        "num_cross_evicted_tokens",
        "num_evicted",
        "num_hit_tokens",
        "num_looked_up_tokens",
        "num_protected_tokens",
        "num_running_tokens",
        "num_tokens",
        "order",
        "share",
    )

    def __init__(self, name: str, order: EvictionPolicy) -> None:
        self.name = name
        self.order = order
        self.share = Share()
        # Written by RadixCache. What is there now: in the tree; of these, locked.
        self.num_tokens = 0
        self.num_protected_tokens = 0
        # What was evicted since the beginning; and of it, what others took of its minimum: 0, or there is a defect.
        self.num_evicted: dict[EvictionCause, int] = dict.fromkeys(get_args(EvictionCause), 0)
        self.num_cross_evicted_tokens = 0
        # Written by whoever runs requests: slots outside of the tree that they own now; prompt tokens since the beginning.
        self.num_running_tokens = 0
        self.num_looked_up_tokens = 0
        self.num_hit_tokens = 0

    @property
    def num_evicted_tokens(self) -> int:
        """For whatever cause but that it was dropped."""
        return sum(self.num_evicted.values()) - self.num_evicted["purge"]

    @property
    def num_held(self) -> int:
        return self.num_tokens + self.num_running_tokens

    @property
    def num_evictable(self) -> int:
        return self.num_tokens - self.num_protected_tokens

    @property
    def num_pinned(self) -> int:
        """What its requests use now: nothing but their end frees it."""
        return self.num_protected_tokens + self.num_running_tokens

    @property
    def is_within_minimum(self) -> bool:
        return self.num_held <= self.share.min_tokens

    @property
    def is_full(self) -> bool:
        """Whatever it has more, it must give up as much of its own."""
        return self.share.max_tokens is not None and self.num_held >= self.share.max_tokens

    @property
    def num_room(self) -> int | None:
        """How many more tokens may run, with what of its own can be evicted for them; None: no limit of its own."""
        if self.share.max_tokens is None:
            return None
        return self.share.max_tokens - self.num_pinned

    @property
    def over(self) -> float:
        return (self.num_held - self.share.min_tokens) / self.share.weight

    def num_payable(self, asker: str) -> int:
        """What it can be asked for by that group."""
        if asker == self.name:
            return self.num_evictable
        return min(self.num_evictable, max(0, self.num_held - self.share.min_tokens))

    def note_taken(self, num_tokens: int, asker: str) -> None:
        """It has just given so many."""
        if asker != self.name:
            self.num_cross_evicted_tokens += min(num_tokens, max(0, self.share.min_tokens - self.num_held))


class Turn(NamedTuple):
    """`group` gives `num_tokens`, and then it is seen again whose turn it is."""

    group: ShareGroup
    num_tokens: int


class Shares:
    """The groups of one cache. Without any named there is one, and so one order over the whole pool."""

    def __init__(self, new_order: Callable[[], EvictionPolicy]) -> None:
        self._new_order = new_order
        self._groups: dict[str, ShareGroup] = {}
        self.only: ShareGroup | None = None
        """the one that there is, while there is one; written here"""

    def __getitem__(self, name: str) -> ShareGroup:
        group = self._groups.get(name)
        if group is None:
            group = ShareGroup(name, self._new_order())
            self.only = None if self._groups else group
            self._groups[name] = group
        return group

    def peek(self, name: str) -> ShareGroup:
        """As by name, but one that is new stays unknown."""
        return self._groups.get(name) or ShareGroup(name, self._new_order())

    def groups(self) -> list[ShareGroup]:
        return list(self._groups.values())

    def num_payable(self, asker: str) -> int:
        """What all groups together can be asked for by that one. O(groups)."""
        return sum(group.num_payable(asker) for group in self._groups.values())

    def next_turn(self, num_tokens: int, asker: str) -> Turn | None:
        """Who pays next for `num_tokens` that `asker` needs; None: nobody can. O(groups)."""
        payers = [group for group in self._groups.values() if group.num_payable(asker) > 0]
        if not payers:
            return None
        if len(payers) == 1:
            payer, lead = payers[0], num_tokens
        else:
            payer, second = heapq.nlargest(2, payers, key=_over)
            lead = max(TURN_TOKENS, int((payer.over - second.over) * payer.share.weight))
        return Turn(payer, min(num_tokens, lead, payer.num_payable(asker)))


def _over(group: ShareGroup) -> float:
    return group.over
