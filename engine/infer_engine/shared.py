"""The prefix cache and the KV pool for programs in which several threads use them: many readers at once, or one writer.

An engine needs none of this: its step loop is the single writer, and takes no lock. These are for those who build on the cache
or the pool themselves. A call is atomic; what must not be split into several calls runs `with shared.writing() as cache:`.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from infer_engine.cache import Handle, InsertResult, MatchResult, NamespaceUsage, RadixCache, RadixKey

if TYPE_CHECKING:
    import torch

    from infer_engine.memory.kv_pool import KVPool


class ReadersWriterLock:
    """Readers share it, a writer has it alone. A writer that waits lets no further reader in, so it does not starve.

    Not reentrant: a thread that has it in either way and asks again waits for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._num_readers = 0
        self._num_writers_waiting = 0
        self._is_writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_writing and not self._num_writers_waiting)
            self._num_readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_readers -= 1
                if not self._num_readers:
                    self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._changed:
            self._num_writers_waiting += 1
            try:
                self._changed.wait_for(lambda: not self._is_writing and not self._num_readers)
                self._is_writing = True
            finally:
                self._num_writers_waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()


class SharedRadixCache:
    """A RadixCache, whose docstrings hold, for several threads.

    What a match finds may be evicted by another thread before its slots are read, unless it was locked in the same call
    (`lock=True`). Slots that `evict`, `unlock` and `drop_namespace` return belong to the caller.
    """

    def __init__(self, cache: RadixCache | None = None) -> None:
        """`cache` is this object's alone from here on."""
        self._cache = cache or RadixCache()
        self._lock = ReadersWriterLock()

    @contextmanager
    def reading(self) -> Iterator[RadixCache]:
        """Several looks at one state: `match_prefix` without a lock, `slots`, `is_live`, the counters."""
        with self._lock.reading():
            yield self._cache

    @contextmanager
    def writing(self) -> Iterator[RadixCache]:
        """Several changes as one, such as unlock, insert, lock."""
        with self._lock.writing():
            yield self._cache

    def match_prefix(self, key: RadixKey, lock: bool = False) -> MatchResult:
        with self._lock.writing() if lock else self._lock.reading():
            return self._cache.match_prefix(key, lock)

    def num_matched(self, key: RadixKey) -> int:
        with self._lock.reading():
            return self._cache.num_matched(key)

    def slots(self, handle: Handle) -> array[int]:
        with self._lock.reading():
            return self._cache.slots(handle)

    def is_live(self, handle: Handle) -> bool:
        with self._lock.reading():
            return self._cache.is_live(handle)

    def usage(self) -> dict[str, NamespaceUsage]:
        with self._lock.reading():
            return self._cache.usage()

    @property
    def num_tokens(self) -> int:
        with self._lock.reading():
            return self._cache.num_tokens

    @property
    def num_evictable_tokens(self) -> int:
        with self._lock.reading():
            return self._cache.num_evictable_tokens

    def insert(self, key: RadixKey, slots: Sequence[int]) -> InsertResult:
        with self._lock.writing():
            return self._cache.insert(key, slots)

    def lock(self, handle: Handle) -> None:
        with self._lock.writing():
            self._cache.lock(handle)

    def unlock(self, handle: Handle) -> array[int]:
        with self._lock.writing():
            return self._cache.unlock(handle)

    def evict(self, num_tokens: int, group: str = "") -> array[int]:
        with self._lock.writing():
            return self._cache.evict(num_tokens, group)

    def drop_namespace(self, namespace: str) -> array[int]:
        with self._lock.writing():
            return self._cache.drop_namespace(namespace)

    def check_integrity(self) -> None:
        with self._lock.reading():
            self._cache.check_integrity()


class SharedKVPool:
    """A KVPool for several threads: no reader sees half of a write."""

    def __init__(self, pool: KVPool) -> None:
        """`pool` is this object's alone from here on."""
        self._pool = pool
        self._lock = ReadersWriterLock()

    @contextmanager
    def reading(self) -> Iterator[KVPool]:
        """Several layers of one state."""
        with self._lock.reading():
            yield self._pool

    @contextmanager
    def writing(self) -> Iterator[KVPool]:
        """All layers of a token as one."""
        with self._lock.writing():
            yield self._pool

    @property
    def layout(self) -> str:
        return self._pool.layout

    def read(self, layer_idx: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with self._lock.reading():
            return self._pool.read(layer_idx, slots)

    def write(self, layer_idx: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        with self._lock.writing():
            self._pool.write(layer_idx, slots, keys, values)

    def zero(self, slots: torch.Tensor) -> None:
        with self._lock.writing():
            self._pool.zero(slots)
