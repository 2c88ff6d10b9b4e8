"""Many readers and a writer on one cache and on one pool: nobody sees anything half done, and nobody waits for ever."""

from __future__ import annotations

import random
import threading
from array import array
from collections.abc import Callable

import torch

from infer_engine import RadixCache, RadixKey, SharedKVPool, SharedRadixCache, StaleHandle
from infer_engine.memory.kv_pool import KVPool
from infer_engine.shared import ReadersWriterLock

NUM_READERS = 6
NUM_WRITES = 1_500
NUM_WRITES_SOAK = 50_000
PATIENCE_SECONDS = 60.0


def run_threads(*works: Callable[[], None]) -> None:
    """All of them to their end; the first that fails fails the test."""
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "a thread waits for ever"
    if failures:
        raise failures[0]


def test_readers_are_inside_together() -> None:
    lock, inside = ReadersWriterLock(), threading.Barrier(NUM_READERS)

    def read() -> None:
        with lock.reading():
            inside.wait(PATIENCE_SECONDS)  # broken unless all are in at once

    run_threads(*[read] * NUM_READERS)


def test_a_writer_that_waits_goes_before_new_readers() -> None:
    lock = ReadersWriterLock()
    order: list[str] = []
    first_is_in, may_leave = threading.Event(), threading.Event()

    def first() -> None:
        with lock.reading():
            first_is_in.set()
            assert may_leave.wait(PATIENCE_SECONDS)

    def write() -> None:
        assert first_is_in.wait(PATIENCE_SECONDS)
        with lock.writing():
            order.append("writer")

    def late() -> None:
        while not lock._num_writers_waiting:
            threading.Event().wait(0.001)
        threading.Timer(0.05, may_leave.set).start()
        with lock.reading():
            order.append("late reader")

    run_threads(first, write, late)
    assert order == ["writer", "late reader"]


def test_readers_never_see_a_cache_half_changed(is_soak: bool) -> None:
    """Slots are derived from tokens, so that whatever a reader gets tells whether it is right."""
    shared = SharedRadixCache(RadixCache())
    is_done = threading.Event()

    def slots_of(tokens: list[int]) -> array[int]:
        found, value = array("i"), 0
        for token in tokens:
            value = (value * 7 + token + 1) % 1_000_003
            found.append(value)
        return found

    def random_tokens(rng: random.Random) -> list[int]:
        return [rng.randrange(2) for _ in range(rng.randint(1, 12))]

    def write() -> None:
        rng = random.Random(0)
        for _ in range(NUM_WRITES_SOAK if is_soak else NUM_WRITES):
            tokens = random_tokens(rng)
            with shared.writing() as cache:
                cache.insert(RadixKey(tokens), slots_of(tokens))
            if rng.random() < 0.5:
                shared.evict(rng.randint(1, 10))
        is_done.set()

    def read(seed: int) -> Callable[[], None]:
        def work() -> None:
            rng = random.Random(seed)
            while not is_done.is_set():
                tokens = random_tokens(rng)
                match = shared.match_prefix(RadixKey(tokens), lock=rng.random() < 0.3)
                assert match.slots == slots_of(tokens)[: match.num_tokens]
                if match.handle.is_locked:
                    assert shared.slots(match.handle) == match.slots, "locked, so it is still there"
                    assert not shared.unlock(match.handle)
                else:
                    try:
                        assert shared.slots(match.handle) == match.slots
                    except StaleHandle:
                        assert not shared.is_live(match.handle)

        return work

    run_threads(write, *[read(seed) for seed in range(NUM_READERS)])
    shared.check_integrity()
    shared.evict(1_000_000)
    assert (shared.num_tokens, shared.num_evictable_tokens) == (0, 0)


def test_readers_never_see_half_of_a_write_to_the_pool() -> None:
    shared = SharedKVPool(KVPool(2, 4, 1, 4096, torch.float32, torch.device("cpu")))
    slots = torch.arange(4)
    shared.zero(slots)
    is_done = threading.Event()

    def write() -> None:
        for number in range(300):
            content = torch.full((4, 1, 4096), float(number))
            with shared.writing() as pool:
                for layer in range(2):
                    pool.write(layer, slots, content, -content)
        is_done.set()

    def read() -> None:
        while not is_done.is_set():
            with shared.reading() as pool:
                seen = [tensor for layer in range(2) for tensor in pool.read(layer, slots)]
            values = {abs(float(tensor.min())) for tensor in seen} | {abs(float(tensor.max())) for tensor in seen}
            assert len(values) == 1

    run_threads(write, *[read] * NUM_READERS)
