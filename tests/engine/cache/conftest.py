"""A cache whose slots tell where they came from, so that expected values can be written down literally."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

from infer_engine.cache import InsertResult, RadixCache, RadixKey

Put = Callable[..., InsertResult]


@pytest.fixture
def cache() -> RadixCache:
    return RadixCache()


@pytest.fixture
def put(cache: RadixCache) -> Put:
    """put("abc", 10) inserts the tokens a, b, c in slots 10, 11, 12."""

    def insert(text: str, first_slot: int, namespace: str = "") -> InsertResult:
        slots = array("i", range(first_slot, first_slot + len(text)))
        return cache.insert(RadixKey([ord(letter) for letter in text], namespace), slots)

    return insert


@pytest.fixture
def key() -> Callable[..., RadixKey]:
    """key("abc") has the tokens a, b, c."""
    return lambda text, namespace="": RadixKey([ord(letter) for letter in text], namespace)
