"""The check finds each kind of damage and names the invariant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infer_engine.cache import InsertResult, RadixCache
from infer_engine.cache.node import Node, Root

Put = Callable[..., InsertResult]
Damage = Callable[[RadixCache, Root, Node, Node], object]

DAMAGES: dict[str, tuple[str, Damage]] = {
    "a slot is lost": ("I1", lambda cache, root, upper, leaf: leaf.slots.pop()),
    "a wrong parent": ("I2", lambda cache, root, upper, leaf: setattr(leaf, "parent", root)),
    "a wrong start": ("I2", lambda cache, root, upper, leaf: setattr(leaf, "start_idx", 1)),
    "filed under another token": (
        "I2",
        lambda cache, root, upper, leaf: upper.children.update({b"????": upper.children.pop(leaf.key[:4])}),
    ),
    "a slot twice": ("I3", lambda cache, root, upper, leaf: leaf.slots.__setitem__(0, upper.slots[0])),
    "a lost lock": ("I4", lambda cache, root, upper, leaf: setattr(upper, "lock_ref", 0)),
    "an evicted node": ("I4", lambda cache, root, upper, leaf: setattr(leaf, "lock_ref", -1)),
    "filed under another namespace": (
        "I5",
        lambda cache, root, upper, leaf: cache._roots.update({"x": cache._roots.pop("")}),
    ),
    "an empty root": ("I5", lambda cache, root, upper, leaf: cache._make_root("nobody", "")),
    "a root that says it is dropped": ("I5", lambda cache, root, upper, leaf: setattr(root, "is_dropped", True)),
    "missing in the order": ("I6", lambda cache, root, upper, leaf: root.order.remove(leaf)),
    "parent before child": ("I6", lambda cache, root, upper, leaf: root.order.touch(leaf)),
    "twice in the order": ("I6", lambda cache, root, upper, leaf: root.order.add(leaf)),
    "tokens miscounted": ("I7", lambda cache, root, upper, leaf: setattr(root, "num_tokens", 0)),
    "protected tokens miscounted": ("I7", lambda cache, root, upper, leaf: setattr(root, "num_protected_tokens", 0)),
    "all tokens miscounted": ("I7", lambda cache, root, upper, leaf: setattr(cache, "_num_tokens", 0)),
    "all protected tokens miscounted": (
        "I7",
        lambda cache, root, upper, leaf: setattr(cache, "_num_protected_tokens", 0),
    ),
    "nodes miscounted": ("I7", lambda cache, root, upper, leaf: setattr(cache, "_num_nodes", 0)),
    "the group's tokens miscounted": ("I7", lambda cache, root, upper, leaf: setattr(root.group, "num_tokens", 0)),
    "the group's protected tokens miscounted": (
        "I7",
        lambda cache, root, upper, leaf: setattr(root.group, "num_protected_tokens", 0),
    ),
    "another group's order": ("I8", lambda cache, root, upper, leaf: setattr(root, "order", cache.shares["x"].order)),
    "an unknown group": ("I8", lambda cache, root, upper, leaf: cache.shares._groups.clear()),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(cache: RadixCache, put: Put, name: str) -> None:
    put("abcd", 10)
    put("abxy", 20)
    cache.lock(put("mn", 30).handle)
    cache.lock(put("mnop", 30).handle)
    cache.check_integrity()
    root = cache._roots[""]
    invariant, damage = DAMAGES[name]
    in_locked_path = name in {"a lost lock"}
    upper = root.children[b"m\0\0\0" if in_locked_path else b"a\0\0\0"]
    leaf = next(iter(upper.children.values()))
    damage(cache, root, upper, leaf)
    with pytest.raises(AssertionError, match=f"{invariant}: "):
        cache.check_integrity()
