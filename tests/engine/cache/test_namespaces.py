"""Namespaces share the pool and nothing else."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

from infer_engine.cache import InsertResult, RadixCache, RadixKey
from infer_engine.errors import StaleHandle

Put = Callable[..., InsertResult]
MakeKey = Callable[..., RadixKey]


def test_no_match_crosses_a_namespace(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("abc", 10, "tenant-1")
    assert cache.match_prefix(key("abc", "tenant-1")).num_tokens == 3
    assert cache.match_prefix(key("abc", "tenant-2")).num_tokens == 0
    assert cache.match_prefix(key("abc")).num_tokens == 0
    assert put("abc", 20, "tenant-2").num_existing == 0


def test_usage_counts_each_namespace(cache: RadixCache, put: Put) -> None:
    cache.lock(put("ab", 10, "tenant-1").handle)
    put("abcd", 20, "tenant-1")
    put("xyz", 30, "tenant-2")
    cache.evict(3)
    assert cache.usage() == {"tenant-1": (2, 2), "tenant-2": (2, 0)}


def test_dropping_frees_what_nobody_holds(cache: RadixCache, put: Put, key: MakeKey) -> None:
    put("abc", 10, "tenant-1")
    put("abx", 20, "tenant-1")
    put("abc", 30, "tenant-2")
    assert sorted(cache.drop_namespace("tenant-1")) == [10, 11, 12, 22]
    assert cache.match_prefix(key("abc", "tenant-1")).num_tokens == 0
    assert cache.usage() == {"tenant-2": (3, 0)}


def test_dropping_an_unknown_namespace_does_nothing(cache: RadixCache) -> None:
    assert cache.drop_namespace("nobody") == array("i")


def test_what_is_locked_in_a_dropped_namespace_comes_back_with_its_last_unlock(
    cache: RadixCache, put: Put, key: MakeKey
) -> None:
    put("abcd", 10, "tenant-1")
    long = cache.match_prefix(key("abcd", "tenant-1"), lock=True).handle
    short = cache.match_prefix(key("ab", "tenant-1"), lock=True).handle
    assert cache.drop_namespace("tenant-1") == array("i")
    assert cache.usage() == {"tenant-1": (4, 4)}
    assert cache.evict(4) == array("i")
    assert cache.unlock(long) == array("i", [12, 13])
    assert cache.unlock(short) == array("i", [10, 11])
    assert cache.usage() == {}


def test_handles_of_a_dropped_namespace_are_stale(cache: RadixCache, put: Put, key: MakeKey) -> None:
    loose = put("ab", 10, "tenant-1").handle
    held = cache.match_prefix(key("ab", "tenant-1"), lock=True).handle
    held_empty = cache.match_prefix(key("x", "tenant-1"), lock=True).handle
    cache.drop_namespace("tenant-1")
    for handle in (loose, held, held_empty):
        assert not cache.is_live(handle)
        with pytest.raises(StaleHandle):
            cache.lock(handle)
    with pytest.raises(StaleHandle):
        cache.slots(held)
    assert cache.unlock(held) == array("i", [10, 11])
    assert cache.unlock(held_empty) == array("i")


def test_a_dropped_namespace_begins_empty_while_the_old_one_is_still_held(
    cache: RadixCache, put: Put, key: MakeKey
) -> None:
    old = put("ab", 10, "tenant-1").handle
    cache.lock(old)
    cache.drop_namespace("tenant-1")
    assert put("ab", 20, "tenant-1").num_existing == 0
    assert cache.usage() == {"tenant-1": (4, 2)}
    cache.check_integrity()
    assert cache.unlock(old) == array("i", [10, 11])
    assert cache.match_prefix(key("ab", "tenant-1")).slots == array("i", [20, 21])


def test_an_emptied_namespace_leaves_nothing(cache: RadixCache, put: Put) -> None:
    put("ab", 10, "tenant-1")
    cache.evict(2)
    assert cache.usage() == {}
    assert cache.shares[""].num_evicted == {"pressure": 2, "quota": 0, "ttl": 0, "purge": 0}
