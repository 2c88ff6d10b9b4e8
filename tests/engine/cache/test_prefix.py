"""Keys: every form of tokens gives the same key, and bad ones are refused."""

from __future__ import annotations

import struct
from array import array

import numpy as np
import pytest

from infer_engine.cache import RadixCache, RadixKey
from infer_engine.errors import InvalidRequestError

TOKENS = [1, 258, 70_000, 2**31 - 1, -5]


@pytest.mark.parametrize(
    "tokens",
    [
        tuple(TOKENS),
        array("i", TOKENS),
        array("q", TOKENS),
        struct.pack("<5i", *TOKENS),
        bytearray(struct.pack("<5i", *TOKENS)),
        np.array(TOKENS, dtype=np.int32),
        np.array(TOKENS, dtype=np.int64),
        np.array(TOKENS, dtype=">i4"),
        np.repeat(np.array(TOKENS, dtype=np.int32), 2)[::2],
    ],
    ids=lambda tokens: f"{type(tokens).__name__}",
)
def test_every_form_of_the_same_tokens_is_the_same_key(tokens: list[int]) -> None:
    assert RadixKey(tokens) == RadixKey(TOKENS)
    assert hash(RadixKey(tokens)) == hash(RadixKey(TOKENS))
    assert len(RadixKey(tokens)) == 5


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (b"abcde", "got 5 bytes; int32 tokens take a multiple of 4"),
        ([2**31], "integers that fit in 32 bits"),
        (["a"], "integers that fit in 32 bits"),
        ([1.5], "integers that fit in 32 bits"),
        (np.zeros((2, 2), dtype=np.int32), "in one dimension"),
        (np.zeros(2, dtype=np.float32), "integers that fit in 32 bits"),
    ],
)
def test_bad_tokens_are_refused(tokens: list[int], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        RadixKey(tokens)


@pytest.mark.parametrize("tokens", [None, 7, "abc"])
def test_what_is_no_run_of_tokens_is_refused(tokens: list[int]) -> None:
    with pytest.raises(InvalidRequestError, match="tokens: must be integers"):
        RadixKey(tokens)


def test_a_namespace_is_a_string() -> None:
    with pytest.raises(InvalidRequestError, match="namespace: got 7; must be a string"):
        RadixKey([1], 7)  # type: ignore[arg-type]


def test_keys_of_different_namespaces_differ() -> None:
    assert RadixKey.with_namespace([1, 2], "tenant-1") == RadixKey([1, 2], "tenant-1") != RadixKey([1, 2])
    assert RadixKey([1, 2]) != [1, 2]
    assert repr(RadixKey([1, 2], "tenant-1")) == "RadixKey(2 tokens in 'tenant-1')"


def test_keys_and_handles_are_frozen(cache: RadixCache) -> None:
    key = RadixKey([1])
    with pytest.raises(AttributeError, match="a RadixKey cannot be changed"):
        key.namespace = "tenant-2"
    with pytest.raises(AttributeError):
        cache.match_prefix(key).handle.num_tokens = 3  # type: ignore[misc]


@pytest.mark.parametrize("num_tokens", [1, 2, 63, 64, 65, 5000])
def test_the_first_difference_is_found_wherever_it_is(num_tokens: int) -> None:
    cache = RadixCache()
    known = list(range(1, num_tokens + 1))
    cache.insert(RadixKey(known), array("i", range(num_tokens)))
    for idx in {0, 1, num_tokens // 2, num_tokens - 1} & set(range(num_tokens)):
        # 2**24 differs from a small token in its last byte only: whole tokens are compared, not bytes.
        other = [*known[:idx], known[idx] + 2**24, *known[idx + 1 :]]
        assert cache.match_prefix(RadixKey(other)).num_tokens == idx
    assert cache.match_prefix(RadixKey([*known, 7])).num_tokens == num_tokens
