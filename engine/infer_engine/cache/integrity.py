"""The invariants of the prefix cache, each written once, and the check of all of them.

I1  Every node but a root holds at least one token, and one slot per token.
I2  A child starts where its parent ends, knows it, and is filed under its own first token. So siblings differ in it, and a
    prompt leads to at most one path.
I3  No slot is owned by two nodes.
I4  A node's lock_ref is at least the sum of its children's (each lock goes from its node up to the root). So above a locked
    node all are locked, and below an unlocked one none is.
I5  A namespace's root is there if and only if it has a child or a lock. All nodes of a dropped one are locked.
I6  The eviction order holds exactly the unlocked nodes, each after its children. So the first is a leaf.
I7  The counters (tokens, protected tokens, nodes; per namespace, per share group and in all) are what a count gives.
I8  A namespace's nodes stand in the order of its own group, and in no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from infer_engine.cache.node import TOKEN_BYTES, Node, Root

if TYPE_CHECKING:
    from infer_engine.cache.radix import RadixCache
    from infer_engine.cache.shares import ShareGroup


def check_integrity(cache: RadixCache) -> None:
    """Raise AssertionError naming the first invariant that does not hold. O(tokens)."""
    roots = [*cache._roots.values(), *cache._dropped_roots]
    nodes = [node for root in roots for node in _nodes_below(root)]
    for node in (*roots, *nodes):
        _check_node(node)
    for root in roots:
        _check_root(root, is_dropped=root in cache._dropped_roots)
    for name, root in cache._roots.items():
        assert root.namespace == name, f"I5: the root of {root.namespace!r} is filed under {name!r}"
    slots = [slot for node in nodes for slot in node.slots]
    assert len(slots) == len(set(slots)), "I3: a slot is owned by two nodes"
    for group in cache.shares.groups():
        _check_group(group, [root for root in roots if root.group is group])
    assert cache.num_nodes == len(nodes), f"I7: num_nodes is {cache.num_nodes}, counted {len(nodes)}"
    assert cache.num_tokens == len(slots), f"I7: num_tokens is {cache.num_tokens}, counted {len(slots)}"
    evictable = sum(len(node.slots) for node in nodes if node.lock_ref == 0)
    assert cache.num_evictable_tokens == evictable, (
        f"I7: num_evictable_tokens is {cache.num_evictable_tokens}, counted {evictable}"
    )
    known = cache.shares.groups()
    assert all(root.group in known for root in roots), "I8: a namespace counts to a group that is not known"


def _nodes_below(root: Root) -> Iterator[Node]:
    pending = list(root.children.values())
    while pending:
        node = pending.pop()
        yield node
        pending += node.children.values()


def _check_root(root: Root, *, is_dropped: bool) -> None:
    name = root.namespace
    nodes = list(_nodes_below(root))
    assert root.is_dropped == is_dropped, f"I5: {name!r} is filed as {'dropped' if is_dropped else 'live'}, and is not"
    assert root.children or root.lock_ref > 0, f"I5: the root of {name!r} is empty and not locked"
    assert not is_dropped or all(node.lock_ref > 0 for node in nodes), f"I5: an unlocked node in dropped {name!r}"
    assert all(node.root is root for node in nodes), f"I2: a node below {name!r} belongs to another namespace"
    num_tokens = sum(len(node.slots) for node in nodes)
    protected = sum(len(node.slots) for node in nodes if node.lock_ref > 0)
    assert root.num_tokens == num_tokens, f"I7: {name!r} counts {root.num_tokens} tokens, has {num_tokens}"
    assert root.num_protected_tokens == protected, (
        f"I7: {name!r} counts {root.num_protected_tokens} protected tokens, has {protected}"
    )


def _check_group(group: ShareGroup, roots: list[Root]) -> None:
    name = group.name
    num_tokens = sum(root.num_tokens for root in roots)
    protected = sum(root.num_protected_tokens for root in roots)
    assert group.num_tokens == num_tokens, f"I7: group {name!r} counts {group.num_tokens} tokens, has {num_tokens}"
    assert group.num_protected_tokens == protected, (
        f"I7: group {name!r} counts {group.num_protected_tokens} protected tokens, has {protected}"
    )
    assert all(root.order is group.order for root in roots), f"I8: a namespace of {name!r} has another order"
    _check_order(group.order.nodes(), [node for root in roots for node in _nodes_below(root)])


def _check_node(node: Node) -> None:
    is_root = node is node.root
    assert len(node.key) == TOKEN_BYTES * len(node.slots), f"I1: {len(node.key)} bytes and {len(node.slots)} slots"
    assert is_root or node.slots, "I1: a node without tokens"
    assert node.lock_ref >= sum(child.lock_ref for child in node.children.values()), "I4: a child is locked more often"
    assert node.lock_ref >= 0, "I4: an evicted node is still in the tree"
    for first, child in node.children.items():
        assert child.parent is node, "I2: a child names another parent"
        assert child.start_idx == node.end_idx, f"I2: a child starts at {child.start_idx}, not at {node.end_idx}"
        assert child.key[:TOKEN_BYTES] == first, "I2: a child is filed under another token"


def _check_order(order: list[Node], nodes: list[Node]) -> None:
    unlocked = {node for node in nodes if node.lock_ref == 0}
    assert len(order) == len(set(order)), "I6: a node stands twice in the eviction order"
    assert set(order) == unlocked, "I6: the eviction order does not hold exactly the unlocked nodes"
    seen: set[Node] = set()
    for node in order:
        assert seen.issuperset(node.children.values()), "I6: a node stands before its child"
        seen.add(node)
