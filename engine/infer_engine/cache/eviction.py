"""Who is evicted next: the verbs that a policy answers, and the policies by name.

In: what happens to nodes, told by RadixCache. Out: the next victim, always an unlocked leaf. A new policy is a class with these
verbs and a line in POLICIES. One that orders leaves by a priority keeps a lazy heap of them: O(log n) instead of O(1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from infer_engine.cache.node import LruRing, Node
from infer_engine.errors import ConfigError


class EvictionPolicy(Protocol):
    """Told of every change of the unlocked nodes; a path's nodes come leaf first, root last. Roots never come."""

    def add(self, node: Node) -> None:
        """`node` became unlocked, or is new."""
        ...

    def remove(self, node: Node) -> None:
        """`node` became locked, or left the tree."""
        ...

    def touch(self, node: Node) -> None:
        """`node`, unlocked before and after, was used."""
        ...

    def add_split(self, upper: Node, lower: Node) -> None:
        """`upper` was cut off the front of `lower`, which is unlocked: it counts as used when `lower` was."""
        ...

    def victim(self) -> Node | None:
        """The leaf to evict next, left in place; None if every node is locked."""
        ...

    def nodes(self) -> list[Node]:
        """All it holds, each after its children; for checks."""
        ...


POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"lru": LruRing}


def make_policy(name: str) -> EvictionPolicy:
    """Raises ConfigError for a name that is not in POLICIES."""
    if name not in POLICIES:
        raise ConfigError(f"policy: got {name!r}; must be one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()
