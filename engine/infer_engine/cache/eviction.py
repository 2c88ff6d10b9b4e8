"""Who is evicted next: the verbs that a policy answers, and the policies by name.

In: what happens to nodes, told by RadixCache. Out: the next victim, always an unlocked leaf. `lru` is a ring (node.py), O(1) for
each verb. The others order leaves by a priority, in a heap: O(log n) for each verb. A policy of your own is such a
priority: a function from `LeafUse` to something comparable, lowest evicted first. Name it by an entry point of the group
`inferengine.eviction_policies`, or hand it to `RadixCache` itself.

    lru    the leaf that was used longest ago
    lfu    the leaf that was used least often; of equals, the one used longest ago
    fifo   the leaf that is there longest
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol, TypeAlias

from infer_engine.cache.node import LruRing, Node
from infer_engine.errors import ConfigError

ENTRY_POINT_GROUP = "inferengine.eviction_policies"


class EvictionPolicy(Protocol):
    """Told of every change of the unlocked nodes; a path's nodes come leaf first, root last. Roots never come."""

    def add(self, node: Node) -> None:
        """`node` became unlocked, or is new."""
        ...

    def remove(self, node: Node) -> None:
        """`node` became locked, or is about to leave the tree."""
        ...

    def touch(self, node: Node) -> None:
        """`node`, unlocked before and after, was used."""
        ...

    def split(self, upper: Node, lower: Node) -> None:
        """`upper` was cut off the front of `lower`, both locked or both not: it counts as used when `lower` was."""
        ...

    def victim(self) -> Node | None:
        """The leaf to evict next, left in place; None if every node is locked."""
        ...

    def nodes(self) -> list[Node]:
        """All it holds, each after its children; for checks."""
        ...


class LeafUse(NamedTuple):
    """What a priority may look at. Times are ordinal numbers of uses in the whole cache."""

    num_uses: int
    last_used: int
    inserted: int
    num_tokens: int
    """Its own: those that only prompts through it have."""
    start_idx: int
    """How many tokens stand before them."""


Priority: TypeAlias = Callable[[LeafUse], Any]


@dataclass(slots=True)
class _Record:
    """Of one node; it stays with it while it is locked. A split copies it."""

    inserted: int
    last_used: int
    num_uses: int = 0
    entry: int = 0
    """Its entry in the heap that counts: those with another number are out of date. 0: none does."""


class LeafHeap:
    """Unlocked leaves by their priority, which is asked for at each use.

    The heap is lazy: an entry out of date, or of a node that has children, is dropped when it comes up. A node becomes a leaf
    when its last child goes, and is entered again then. So every unlocked leaf has an entry that counts.
    """

    __slots__ = ("_clock", "_heap", "_nodes", "_priority")

    def __init__(self, priority: Priority) -> None:
        self._priority = priority
        self._clock = 0
        self._heap: list[tuple[Any, int, Node]] = []
        self._nodes: set[Node] = set()

    def add(self, node: Node) -> None:
        self._nodes.add(node)
        if node.record is None:  # new: its first use is told by `touch`
            self._clock += 1
            node.record = _Record(self._clock, self._clock)
            self._enter(node)
        else:
            self.touch(node)

    def remove(self, node: Node) -> None:
        self._nodes.discard(node)
        _record(node).entry = 0
        parent = node.parent
        if parent in self._nodes and len(parent.children) == 1:
            self._enter(parent)

    def touch(self, node: Node) -> None:
        self._clock += 1
        record = _record(node)
        record.num_uses += 1
        record.last_used = self._clock
        if not node.children:
            self._enter(node)

    def split(self, upper: Node, lower: Node) -> None:
        record = _record(lower)
        upper.record = _Record(record.inserted, record.last_used, record.num_uses)
        if lower.lock_ref == 0:
            self._nodes.add(upper)

    def victim(self) -> Node | None:
        heap = self._heap
        while heap:
            _, entry, node = heap[0]
            if _record(node).entry == entry and not node.children:
                return node
            heapq.heappop(heap)
        return None

    def nodes(self) -> list[Node]:
        return sorted(self._nodes, key=lambda node: -node.start_idx)

    def _enter(self, node: Node) -> None:
        self._clock += 1
        record = _record(node)
        record.entry = self._clock
        use = LeafUse(record.num_uses, record.last_used, record.inserted, len(node.slots), node.start_idx)
        heapq.heappush(self._heap, (self._priority(use), self._clock, node))
        if len(self._heap) > 2 * len(self._nodes) + 64:  # entries out of date would keep evicted nodes in memory
            self._heap = [entry for entry in self._heap if _record(entry[2]).entry == entry[1]]
            heapq.heapify(self._heap)


def _record(node: Node) -> _Record:
    record = node.record
    assert isinstance(record, _Record)
    return record


def _frequency(use: LeafUse) -> tuple[int, int]:
    return use.num_uses, use.last_used


def _arrival(use: LeafUse) -> int:
    return use.inserted


BUILT_IN: dict[str, Callable[[], EvictionPolicy]] = {
    "lru": LruRing,
    "lfu": lambda: LeafHeap(_frequency),
    "fifo": lambda: LeafHeap(_arrival),
}


def find_policy(policy: str | Priority) -> Callable[[], EvictionPolicy]:
    """A maker of policies: by a name that is built in or installed, or from a priority. Raises ConfigError."""
    if not isinstance(policy, str):
        return lambda: LeafHeap(policy)
    if policy in BUILT_IN:
        return BUILT_IN[policy]
    installed = entry_points(group=ENTRY_POINT_GROUP)
    if policy in installed.names:
        priority: Priority = installed[policy].load()
        return lambda: LeafHeap(priority)
    known = ", ".join(sorted({*BUILT_IN, *installed.names}))
    raise ConfigError(f"eviction_policy: got {policy!r}; must be one of {known}")
