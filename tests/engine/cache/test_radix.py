"""Matching, inserting, splitting and locking, one story each."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable

import pytest

import infer_engine.cache
from infer_engine.cache import InsertResult, RadixCache, RadixKey
from infer_engine.cache.node import Node
from infer_engine.errors import RejectedError, StaleHandle

Put = Callable[..., InsertResult]
MakeKey = Callable[..., RadixKey]


def test_an_empty_cache_matches_nothing(cache: RadixCache, key: MakeKey) -> None:
    match = cache.match_prefix(key("abc"))
    assert (match.num_tokens, match.slots) == (0, array("i"))
    assert cache.usage() == {}


def test_a_match_returns_the_slots_of_the_longest_known_prefix(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("abcde", 10)
    put("abcxy", 20)
    assert cache.match_prefix(key("abcxyz")).slots == array("i", [10, 11, 12, 23, 24])
    assert cache.match_prefix(key("abcd")).slots == array("i", [10, 11, 12, 13])
    assert cache.match_prefix(key("ab?")).slots == array("i", [10, 11])
    assert cache.match_prefix(key("?bc")).num_tokens == 0


def test_a_match_without_a_lock_changes_nothing(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("abcd", 10)
    put("xy", 20)
    cache.match_prefix(key("ab"))
    assert cache.num_nodes == 2
    assert cache.evict(4) == array("i", [10, 11, 12, 13])


def test_the_slots_of_a_match_are_a_copy(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("ab", 10)
    cache.match_prefix(key("ab")).slots[0] = 99
    assert cache.match_prefix(key("ab")).slots == array("i", [10, 11])


def test_inserting_a_known_prompt_leaves_its_slots_with_the_caller(cache: RadixCache, put: Put, key: MakeKey) -> None:
    assert put("abc", 10).num_existing == 0
    again = put("abcd", 20)
    assert again.num_existing == 3
    assert cache.slots(again.handle) == array("i", [10, 11, 12, 23])
    assert cache.num_tokens == 4


def test_the_tree_copies_the_slots_that_it_takes(cache: RadixCache, key: MakeKey) -> None:
    mine = array("i", [10, 11])
    handle = cache.insert(key("ab"), mine).handle
    mine[0] = 99
    assert cache.slots(handle) == array("i", [10, 11])


def test_insert_needs_one_slot_per_token(cache: RadixCache, key: MakeKey) -> None:
    with pytest.raises(RejectedError, match="slots: got 2 for 3 tokens"):
        cache.insert(key("abc"), array("i", [1, 2]))
    assert cache.usage() == {}


def test_inserting_no_tokens_costs_nothing(cache: RadixCache, key: MakeKey) -> None:
    result = cache.insert(key("", "tenant-1"), array("i"))
    assert (result.num_existing, result.handle.num_tokens) == (0, 0)
    assert cache.usage() == {}


def test_a_leaf_that_nobody_holds_grows_in_place(cache: RadixCache, put: Put) -> None:
    put("ab", 10)
    put("abcd", 20)
    assert (cache.num_nodes, cache.num_tokens) == (1, 4)


def test_a_locked_leaf_is_continued_by_a_child(cache: RadixCache, put: Put) -> None:
    cache.lock(put("ab", 10).handle)
    put("abcd", 20)
    assert (cache.num_nodes, cache.num_protected_tokens, cache.num_evictable_tokens) == (2, 2, 2)


def test_lock_splits_where_the_prefix_ends(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("abcd", 10)
    cache.match_prefix(key("ab"), lock=True)
    assert (cache.num_nodes, cache.num_protected_tokens, cache.num_evictable_tokens) == (2, 2, 2)
    assert cache.evict(10) == array("i", [12, 13])


def test_lock_protects_all_ancestors(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("abcd", 10)
    put("abxy", 20)
    cache.match_prefix(key("abxy"), lock=True)
    assert cache.num_protected_tokens == 4
    assert cache.evict(10) == array("i", [12, 13])


def test_split_keeps_lock_on_both_halves(cache: RadixCache, put: Put) -> None:
    held = put("abcd", 10).handle
    cache.lock(held)
    put("abxy", 20)
    assert cache.num_nodes == 3
    assert cache.evict(10) == array("i", [22, 23])
    assert cache.slots(held) == array("i", [10, 11, 12, 13])
    cache.unlock(held)
    assert cache.num_protected_tokens == 0
    assert sorted(cache.evict(10)) == [10, 11, 12, 13]


def test_two_locks_need_two_unlocks(cache: RadixCache, put: Put) -> None:
    held = put("ab", 10).handle
    cache.lock(held)
    cache.lock(held)
    cache.unlock(held)
    assert held.is_locked
    assert cache.evict(2) == array("i")
    cache.unlock(held)
    assert not held.is_locked
    assert len(cache.evict(2)) == 2


def test_unlock_without_a_lock_is_an_error(cache: RadixCache, put: Put) -> None:
    held = put("ab", 10).handle
    with pytest.raises(AssertionError, match=r"unlock of Handle\(2 tokens in '', 0 locks\), which is not locked"):
        cache.unlock(held)
    cache.lock(held)
    cache.unlock(held)
    with pytest.raises(AssertionError, match="each lock allows one unlock"):
        cache.unlock(held)


def test_another_handle_of_the_same_prefix_does_not_unlock(cache: RadixCache, put: Put, key: MakeKey) -> None:
    cache.lock(put("ab", 10).handle)
    with pytest.raises(AssertionError, match="not locked"):
        cache.unlock(cache.match_prefix(key("ab")).handle)


def test_a_handle_works_in_its_own_cache_only(put: Put) -> None:
    handle = put("ab", 10).handle
    other = RadixCache()
    for verb in (other.lock, other.unlock, other.slots, other.is_live):
        with pytest.raises(AssertionError, match="belongs to another cache"):
            verb(handle)


def test_a_handle_survives_splits_above_and_below_its_end(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("abcdef", 10)
    handle = cache.match_prefix(key("abcd")).handle
    put("abx", 20)
    put("abcdey", 30)
    put("abcz", 40)
    assert cache.slots(handle) == array("i", [10, 11, 12, 13])
    cache.lock(handle)
    assert cache.num_protected_tokens == 4


def test_a_handle_survives_when_only_what_follows_it_is_evicted(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("abcd", 10)
    handle = cache.match_prefix(key("abc")).handle
    assert cache.evict(1) == array("i", [13])
    assert cache.slots(handle) == array("i", [10, 11, 12])
    assert cache.evict(1) == array("i", [12])
    assert not cache.is_live(handle)


def test_a_handle_stays_stale_when_its_prefix_comes_back(cache: RadixCache, put: Put) -> None:
    handle = put("abcd", 10).handle
    cache.evict(2)
    put("abcd", 20)
    for verb in (cache.lock, cache.slots):
        with pytest.raises(StaleHandle, match="the prefix of 4 tokens in namespace '' was evicted or dropped: match"):
            verb(handle)


def test_a_handle_without_tokens_can_be_locked(cache: RadixCache, key: MakeKey) -> None:
    match = cache.match_prefix(key("abc", "tenant-1"), lock=True)
    assert cache.usage() == {"tenant-1": (0, 0)}
    assert cache.slots(match.handle) == array("i")
    assert cache.unlock(match.handle) == array("i")
    assert cache.usage() == {}


def test_the_same_prompt_twice_in_one_batch_frees_each_duplicate_once(cache: RadixCache, key: MakeKey) -> None:
    prompt = key("abcd")
    first, second = cache.match_prefix(prompt, lock=True), cache.match_prefix(prompt, lock=True)
    slots = {first.handle: array("i", [0, 1, 2, 3]), second.handle: array("i", [4, 5, 6, 7])}
    duplicates = array("i")
    for match in (first, second):
        result = cache.insert(prompt, slots[match.handle])
        duplicates += slots[match.handle][match.num_tokens : result.num_existing]
        assert cache.slots(result.handle) == array("i", [0, 1, 2, 3])
        cache.unlock(match.handle)
    assert duplicates == array("i", [4, 5, 6, 7])
    cache.check_integrity()


def test_neither_a_lock_nor_a_stale_handle_keeps_evicted_nodes_in_memory(cache: RadixCache, put: Put) -> None:
    held, stale = put("ab", 10).handle, put("cd", 20).handle
    put("ef", 30)
    cache.lock(held)
    gc.collect()
    gc.disable()  # so that what is freed is freed by its last reference
    try:
        num_before = count_nodes()
        for number in range(50):
            put(f"{number:02}", 100)
            cache.evict(2)
        assert count_nodes() - num_before <= 1
    finally:
        gc.enable()
    assert not cache.is_live(stale)


def count_nodes() -> int:
    return sum(type(thing) is Node for thing in gc.get_objects())


def test_the_public_names_are_complete() -> None:
    public = {name for name in vars(infer_engine.cache) if name[0].isupper()}
    assert public == set(infer_engine.cache.__all__)
