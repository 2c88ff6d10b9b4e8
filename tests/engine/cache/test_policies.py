"""Orders of eviction other than LRU: what each means, that its heap gives what a search of all leaves gives, and one's own."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from infer_engine.cache import Handle, RadixCache, RadixKey
from infer_engine.cache import eviction as policies
from infer_engine.cache.eviction import LeafUse
from infer_engine.cache.node import Node
from infer_engine.errors import ConfigError

NUM_OPERATIONS = 3_000
NUM_OPERATIONS_SOAK = 100_000


def put(cache: RadixCache, text: str, first_slot: int) -> Handle:
    slots = array("i", range(first_slot, first_slot + len(text)))
    return cache.insert(RadixKey([ord(letter) for letter in text]), slots).handle


def evict_all(cache: RadixCache) -> list[int]:
    order: list[int] = []
    while freed := cache.evict(1):
        order += freed
    return order


def test_lfu_takes_what_was_used_least_often() -> None:
    cache = RadixCache("lfu")
    put(cache, "a", 1)
    put(cache, "b", 2)
    put(cache, "c", 3)
    for _ in range(2):
        put(cache, "a", 9)
    put(cache, "c", 9)
    assert evict_all(cache) == [2, 3, 1]


def test_lfu_takes_of_equals_the_one_used_longest_ago() -> None:
    cache = RadixCache("lfu")
    for slot, text in enumerate("abc"):
        put(cache, text, slot)
    put(cache, "b", 9)
    put(cache, "a", 9)
    put(cache, "c", 9)
    assert evict_all(cache) == [1, 0, 2]


def test_a_split_keeps_the_count_on_both_halves() -> None:
    cache = RadixCache("lfu")
    handle = put(cache, "abcd", 10)
    for _ in range(3):
        put(cache, "abcd", 10)
    cache.lock(handle)
    put(cache, "abxx", 20)  # splits what is locked
    cache.unlock(handle)
    put(cache, "y", 30)
    assert evict_all(cache)[:3] == [23, 22, 30]


def test_fifo_takes_what_came_first_however_often_it_is_used() -> None:
    cache = RadixCache("fifo")
    handle = put(cache, "a", 1)
    put(cache, "b", 2)
    for _ in range(3):
        put(cache, "a", 9)
    cache.lock(handle)
    put(cache, "c", 3)
    cache.unlock(handle)
    assert evict_all(cache) == [1, 2, 3]


def test_a_parent_goes_after_its_children() -> None:
    for name in ("lfu", "fifo"):
        cache = RadixCache(name)
        put(cache, "abc", 10)
        put(cache, "abx", 20)
        assert sorted(evict_all(cache)[:2]) == [12, 22]


def largest_first(use: LeafUse) -> int:
    return -use.num_tokens


def test_a_priority_of_ones_own() -> None:
    cache = RadixCache(largest_first)
    put(cache, "a", 1)
    put(cache, "bbbb", 10)
    put(cache, "cc", 20)
    assert list(cache.evict(6)) == [10, 11, 12, 13, 20, 21]


def test_a_priority_is_found_by_the_name_of_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = EntryPoints(
        [EntryPoint("largest", f"{__name__}:largest_first", policies.ENTRY_POINT_GROUP)],
    )
    monkeypatch.setattr(EntryPoint, "load", lambda self: largest_first)
    monkeypatch.setattr(policies, "entry_points", lambda group: installed)
    cache = RadixCache("largest")
    put(cache, "a", 1)
    put(cache, "bb", 10)
    assert list(cache.evict(2)) == [10, 11]
    with pytest.raises(ConfigError, match=r"must be one of fifo, largest, lfu, lru"):
        RadixCache("smallest")


def leaves(cache: RadixCache) -> Iterator[Node]:
    pending: list[Node] = list(cache._roots.values())
    while pending:
        node = pending.pop()
        pending += node.children.values()
        if not node.children and node.lock_ref == 0 and node is not node.root:
            yield node


@pytest.mark.parametrize("name", ["lfu", "fifo"])
def test_the_heap_gives_what_a_search_of_all_leaves_gives(name: str, is_soak: bool) -> None:
    rng = random.Random(name)
    cache = RadixCache(name)
    handles: list[Handle] = []
    next_slot = 0
    for _ in range(NUM_OPERATIONS_SOAK if is_soak else NUM_OPERATIONS):
        tokens = [rng.randrange(3) for _ in range(rng.randint(1, 8))]
        action = rng.random()
        if action < 0.5:
            handle = cache.insert(RadixKey(tokens), array("i", range(next_slot, next_slot + len(tokens)))).handle
            next_slot += len(tokens)
            if rng.random() < 0.3:
                cache.lock(handle)
                handles.append(handle)
        elif action < 0.7 and handles:
            cache.unlock(handles.pop(rng.randrange(len(handles))))
        else:
            expected = min(leaves(cache), key=lambda leaf: _priority(name, leaf), default=None)
            victim = cache.shares[""].order.victim()
            assert victim is expected
            cache.evict(rng.randint(1, 6))
        cache.check_integrity()


def _priority(name: str, leaf: Node) -> Any:
    record: Any = leaf.record
    return (record.num_uses, record.last_used) if name == "lfu" else record.inserted
