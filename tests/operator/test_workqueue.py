"""The queue of the operator: its rules one by one, then all of them under random use."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infer_operator.workqueue import (
    LAST_RETRY_SECONDS,
    PATIENCE_SECONDS,
    Backlog,
    Lane,
    WorkQueue,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backlog(clock: Clock) -> Backlog[str]:
    return Backlog(clock, jitter=lambda: 1.0)


def drain(backlog: Backlog[str]) -> list[str]:
    taken = []
    while (key := backlog.take()) is not None:
        taken.append(key)
        backlog.done(key)
    return taken


def test_a_key_waits_once(backlog: Backlog[str]) -> None:
    for key in ("a", "b", "a", "a"):
        backlog.add(key)
    assert drain(backlog) == ["a", "b"]


def test_edits_go_before_resyncs(backlog: Backlog[str]) -> None:
    backlog.add("old", Lane.RESYNC)
    backlog.add("other", Lane.RESYNC)
    backlog.add("edited")
    backlog.add("other")
    assert drain(backlog) == ["edited", "other", "old"]


def test_a_resync_never_lowers_an_edit(backlog: Backlog[str]) -> None:
    backlog.add("a")
    backlog.add("b")
    backlog.add("a", Lane.RESYNC)
    assert drain(backlog) == ["a", "b"]


def test_a_resync_that_has_waited_long_goes_first(backlog: Backlog[str], clock: Clock) -> None:
    backlog.add("old", Lane.RESYNC)
    clock.now = PATIENCE_SECONDS + 1
    backlog.add("edited")
    assert drain(backlog) == ["old", "edited"]


def test_a_key_at_work_is_not_given_out_again(backlog: Backlog[str]) -> None:
    backlog.add("a")
    assert backlog.take() == "a"
    backlog.add("a")
    assert backlog.take() is None
    backlog.done("a")
    assert backlog.take() == "a"


def test_failures_come_back_ever_later(backlog: Backlog[str], clock: Clock) -> None:
    backlog.add("a")
    delays = []
    for _ in range(15):
        assert backlog.take() == "a"
        backlog.done("a", failed=True)
        assert backlog.take() is None
        due = backlog.due_in()
        assert due is not None
        delays.append(due)
        clock.now += due
    assert delays[:3] == pytest.approx([0.1, 0.2, 0.4])
    assert delays[-1] == pytest.approx(LAST_RETRY_SECONDS)


def test_a_success_forgets_the_failures(backlog: Backlog[str], clock: Clock) -> None:
    for failed in (True, True, False, True):
        backlog.add("a")
        assert backlog.take() == "a"
        backlog.done("a", failed=failed)
    assert backlog.due_in() == pytest.approx(0.1)


def test_an_edit_of_a_failed_key_does_not_wait(backlog: Backlog[str], clock: Clock) -> None:
    backlog.add("a")
    assert backlog.take() == "a"
    backlog.done("a", failed=True)
    backlog.add("a")
    assert drain(backlog) == ["a"]
    clock.now += 1000
    assert drain(backlog) == []


def test_the_soonest_of_several_delays_counts(backlog: Backlog[str], clock: Clock) -> None:
    for seconds in (50, 10, 90):
        backlog.add_after("a", seconds)
    clock.now = 10
    assert drain(backlog) == ["a"]
    clock.now = 1000
    assert drain(backlog) == []


def test_depth_and_age(backlog: Backlog[str], clock: Clock) -> None:
    assert (backlog.depth, backlog.oldest_seconds) == (0, 0.0)
    backlog.add("a", Lane.RESYNC)
    clock.now = 5
    backlog.add("b")
    backlog.add("a")  # lifted, and as old as before
    clock.now = 7
    assert (backlog.depth, backlog.oldest_seconds) == (2, 7.0)


class RandomUse(RuleBasedStateMachine):
    """Q1 to Q4 against a naive account: which keys owe a take, which are at work."""

    keys = st.sampled_from("abcde")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.backlog: Backlog[str] = Backlog(self.clock, jitter=lambda: 0.0)
        self.owed: set[str] = set()
        self.busy: set[str] = set()

    @rule(key=keys, lane=st.sampled_from(Lane))
    def add(self, key: str, lane: Lane) -> None:
        self.backlog.add(key, lane)
        self.owed.add(key)

    @rule(key=keys, seconds=st.floats(0, 100))
    def add_after(self, key: str, seconds: float) -> None:
        self.backlog.add_after(key, seconds)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def take(self) -> None:
        key = self.backlog.take()
        if key is None:
            assert not self.owed - self.busy
        else:
            assert key not in self.busy
            self.busy.add(key)
            self.owed.discard(key)

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), failed=st.booleans())
    def done(self, data: st.DataObject, failed: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.busy)))
        self.busy.remove(key)
        self.backlog.done(key, failed=failed)
        if failed:
            assert self.backlog.depth or self.backlog.due_in() is not None

    @invariant()
    def waits_once(self) -> None:
        waiting = Counter(key for lane in self.backlog._lanes for key in lane)
        assert all(count == 1 for count in waiting.values())
        assert not waiting.keys() & self.busy
        assert self.owed - self.busy <= waiting.keys()


TestRandomUse = RandomUse.TestCase


async def test_workers_are_bounded_and_no_key_is_in_two() -> None:
    queue: WorkQueue[int] = WorkQueue(workers=3)
    at_work: Counter[int] = Counter()
    most, seen = 0, 0
    finished = asyncio.Event()

    async def work(key: int) -> float | None:
        nonlocal most, seen
        at_work[key] += 1
        assert at_work[key] == 1
        most = max(most, at_work.total())
        await asyncio.sleep(0)
        if key == 3 and seen < 20:
            queue.add(key)
        at_work[key] -= 1
        seen += 1
        if seen == 40:
            finished.set()
        return None

    task = asyncio.create_task(queue.run(work))
    for key in range(100):
        queue.add(key)
    await asyncio.wait_for(finished.wait(), 10)
    task.cancel()
    await asyncio.wait([task])
    assert most == 3


async def test_a_key_that_fails_harms_no_other_and_is_tried_again() -> None:
    queue: WorkQueue[str] = WorkQueue(workers=1)
    tries: Counter[str] = Counter()
    finished = asyncio.Event()

    async def work(key: str) -> float | None:
        tries[key] += 1
        if key == "bad" and tries[key] < 3:
            raise RuntimeError("no")
        if tries["bad"] == 3 and tries["good"] == 2:
            finished.set()
        return 0.01 if key == "good" and tries["good"] == 1 else None

    task = asyncio.create_task(queue.run(work))
    queue.add("bad")
    queue.add("good")
    await asyncio.wait_for(finished.wait(), 10)
    task.cancel()
    await asyncio.wait([task])
    assert tries == {"bad": 3, "good": 2}
