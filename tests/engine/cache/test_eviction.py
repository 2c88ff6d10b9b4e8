"""Who goes first: the expected order is written down literally."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

from infer_engine.cache import InsertResult, RadixCache, RadixKey
from infer_engine.errors import ConfigError

Put = Callable[..., InsertResult]
MakeKey = Callable[..., RadixKey]


def evict_one_by_one(cache: RadixCache) -> list[int]:
    order = []
    while freed := cache.evict(1):
        order += freed
    return order


def test_the_longest_unused_leaf_goes_first(cache: RadixCache, put: Put) -> None:
    put("a", 1)
    put("b", 2)
    put("c", 3)
    assert evict_one_by_one(cache) == [1, 2, 3]


def test_inserting_a_known_prompt_is_a_use(cache: RadixCache, put: Put) -> None:
    put("a", 1)
    put("b", 2)
    put("a", 9)
    assert evict_one_by_one(cache) == [2, 1]


def test_unlocking_is_a_use(cache: RadixCache, put: Put) -> None:
    handle = put("a", 1).handle
    put("b", 2)
    cache.lock(handle)
    put("c", 3)
    cache.unlock(handle)
    assert evict_one_by_one(cache) == [2, 3, 1]


def test_matching_is_no_use(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("a", 1)
    put("b", 2)
    cache.match_prefix(key("a"))
    assert evict_one_by_one(cache) == [1, 2]


def test_a_path_goes_from_its_end(cache: RadixCache, put: Put) -> None:
    put("abc", 10)
    put("abx", 20)
    # 12 is "c", last used before "x" (22); "ab" was used together with "x", and goes after it.
    assert evict_one_by_one(cache) == [12, 22, 11, 10]


def test_use_of_a_prefix_leaves_what_follows_it_old(cache: RadixCache, put: Put) -> None:
    put("abcd", 10)
    put("x", 1)
    put("ab", 20)
    assert evict_one_by_one(cache) == [13, 12, 1, 11, 10]


def test_a_parent_locked_for_longer_goes_after_its_child(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("abcd", 10)
    long, short = cache.match_prefix(key("abcd"), lock=True), cache.match_prefix(key("ab"), lock=True)
    cache.unlock(long.handle)
    put("x", 1)
    cache.unlock(short.handle)
    assert evict_one_by_one(cache) == [13, 12, 1, 11, 10]


def test_one_order_over_all_namespaces(cache: RadixCache, put: Put) -> None:
    put("a", 1, "tenant-1")
    put("a", 2, "tenant-2")
    put("b", 3, "tenant-1")
    assert evict_one_by_one(cache) == [1, 2, 3]


def test_whole_leaves_go_and_the_last_is_trimmed_from_its_end(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("abc", 10)
    put("wxyz", 20)
    assert cache.evict(5) == array("i", [10, 11, 12, 22, 23])
    assert cache.match_prefix(key("wxyz")).slots == array("i", [20, 21])
    cache.check_integrity()


def test_as_many_as_there_are_if_more_are_wanted(cache: RadixCache, put: Put) -> None:
    put("abc", 10)
    cache.lock(put("x", 1).handle)
    assert cache.evict(100) == array("i", [10, 11, 12])
    assert cache.evict(100) == array("i")


@pytest.mark.parametrize("num_tokens", [0, -1])
def test_nothing_is_evicted_where_nothing_is_wanted(cache: RadixCache, put: Put, num_tokens: int) -> None:
    put("abc", 10)
    assert cache.evict(num_tokens) == array("i")


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="eviction_policy: got 'mru'; must be one of fifo, lfu, lru"):
        RadixCache(policy="mru")
