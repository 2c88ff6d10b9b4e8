"""The pieces that the radix tree is made of: nodes, one root per namespace, and the ring that keeps them in order of use.

In: nothing; these are plain records and pointer changes. Out: `Node`, `Root`, `LruRing`. Everything is written by
`RadixCache` alone; `integrity.py` states what must hold between its calls.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infer_engine.cache.eviction import EvictionPolicy
    from infer_engine.cache.shares import ShareGroup

TOKEN_BYTES = 4
EVICTED = -1
"""`lock_ref` of a node that is no longer in the tree."""


class Node:
    """A run of tokens that no branch interrupts: positions [start_idx, start_idx + len(slots)) of every prompt through it.

    `key` is the run as int32 bytes, so comparing it with a prompt is one memcmp; `slots` are where its K/V lie.
    `lock_ref` counts the locks on this node and below it. `children` are keyed by their first token's bytes.

    The token at a given position of a given Node object never changes. A node only grows at its end (an unlocked leaf),
    loses its front to a new parent (a split: the lower half keeps the object), or leaves the tree for good. Handles
    rely on it: the end of a prefix is always found in its node or above it.
    """

    __slots__ = (
        "children",
        "key",
        "lock_ref",
        "newer",
        "older",
        "parent",
        "record",
        "root",
        "slots",
        "start_idx",
        "used_at",
    )

    def __init__(
        self, key: bytes, slots: array[int], start_idx: int, parent: Node, root: Root, lock_ref: int = 0
    ) -> None:
        self.key = key
        self.slots = slots
        self.start_idx = start_idx
        self.parent = parent
        self.root = root
        self.lock_ref = lock_ref
        self.children: dict[bytes, Node] = {}
        self.used_at = 0.0
        """of its last use, on the cache's clock"""
        # Written by the eviction order: links of a ring, or what a priority is made of.
        self.older: Node = parent
        self.newer: Node = parent
        self.record: object = None

    @property
    def end_idx(self) -> int:
        return self.start_idx + len(self.slots)


class Root(Node):
    """A namespace's tree: a node without tokens that is its own parent, and the namespace's counters.

    `lock_ref` counts all locks in the namespace. `order` is the one of its share group, where its unlocked nodes stand in line
    for eviction.
    """

    __slots__ = ("group", "is_dropped", "namespace", "num_protected_tokens", "num_tokens", "order")

    def __init__(self, namespace: str, group: ShareGroup) -> None:
        super().__init__(b"", array("i"), 0, self, self)
        self.namespace = namespace
        self.group = group
        self.order: EvictionPolicy = group.order  # one look less wherever nodes move
        self.num_tokens = 0
        self.num_protected_tokens = 0
        self.is_dropped = False


class LruRing:
    """Unlocked nodes from the least to the most recently used, linked through themselves: every verb is O(1).

    Ordering rules:
      1. The ring holds exactly the unlocked nodes of its roots, never a root.
      2. It is topological: a node stands after (newer than) every unlocked child. A locked child cannot be, as its
         parent would be locked too. Hence the oldest node is a leaf, and no leaf was used longer ago.
      3. Whoever uses a path adds or touches its nodes from the leaf up to the root; that keeps rule 2.
      4. A split puts the upper half directly after the lower one: both were used at the same time.
    """

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self._end = end = Node.__new__(Node)
        """Between the newest (its `older`) and the oldest (its `newer`); in no tree, only its links are used."""
        end.older = end.newer = end

    def add(self, node: Node) -> None:
        """`node` became unlocked, or is new: it is the most recently used."""
        end = self._end
        newest = end.older
        newest.newer = node
        node.older = newest
        node.newer = end
        end.older = node

    def remove(self, node: Node) -> None:
        """`node` became locked, or left the tree."""
        older = node.older
        newer = node.newer
        older.newer = newer
        newer.older = older
        # A link left behind would keep the neighbour in memory after its eviction, and through it all that were evicted since.
        node.older = node.newer = self._end

    def touch(self, node: Node) -> None:
        """`node`, unlocked before and after, was used."""
        self.remove(node)
        self.add(node)

    def split(self, upper: Node, lower: Node) -> None:
        """`upper` was cut off the front of `lower`, both locked or both not."""
        if lower.lock_ref > 0:
            return
        newer = lower.newer
        lower.newer = upper
        upper.older = lower
        upper.newer = newer
        newer.older = upper

    def victim(self) -> Node | None:
        """The leaf to evict next, or None if every node is locked."""
        oldest = self._end.newer
        return None if oldest is self._end else oldest

    def nodes(self) -> list[Node]:
        """Oldest first; for checks. Raises AssertionError where a link is not answered (keeps I6)."""
        found: list[Node] = []
        node = self._end
        while node.newer is not self._end:
            assert node.newer.older is node, "I6: a link of the ring is not answered"
            node = node.newer
            found.append(node)
        assert self._end.older is node, "I6: the ring's end is not its newest node"
        return found
