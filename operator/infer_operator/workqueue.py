"""Keys that need a look in; keys to look at out: each once, never two at a time, edits before resyncs, failures later.

Level-triggered work needs no more than the key: what is to be done is read anew when its turn comes.

Q1. A key waits in one lane at most, however often it is added.
Q2. A key is with one worker at most. Added meanwhile, it waits again as soon as that worker is done.
Q3. After an `add` the key is taken at least once more: no wake-up is lost.
Q4. A key that failed comes back after a growing delay, at once if it is added meanwhile.
Q5. The urgent lane goes first, but no key of the other waits longer than PATIENCE_SECONDS while keys are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import heapq
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 60.0
PATIENCE_SECONDS = 60.0

K = TypeVar("K")


class Lane(enum.IntEnum):
    URGENT = 0
    """somebody waits for it: an edit, a pod that came or went, drift"""
    RESYNC = 1
    """nothing is known to have happened"""


class Backlog(Generic[K]):
    """The bookkeeping, without a loop: time comes from `clock`."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._lanes: tuple[OrderedDict[K, float], ...] = tuple(OrderedDict() for _ in Lane)
        """key -> when it began to wait, oldest first"""
        self._busy: dict[K, Lane | None] = {}
        """key -> the lane it goes to when its worker is done, if it was added meanwhile"""
        self._failures: dict[K, int] = {}
        self._delayed: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        """the entry of `_delayed` that counts; others of the same key are stale"""
        self._order = 0

    def add(self, key: K, lane: Lane = Lane.URGENT) -> None:
        self._due.pop(key, None)
        if key in self._busy:
            wanted = self._busy[key]
            self._busy[key] = lane if wanted is None else min(lane, wanted)  # keeps Q2
            return
        if any(key in waiting for waiting in self._lanes[: lane + 1]):
            return  # keeps Q1
        since = self._clock()
        for waiting in self._lanes[lane + 1 :]:
            since = waiting.pop(key, since)
        self._lanes[lane][key] = since

    def add_after(self, key: K, seconds: float) -> None:
        """In the other lane, after that time; the soonest of several counts."""
        due = self._clock() + seconds
        if self._is_queued(key) or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._delayed, (due, self._order, key))

    def _is_queued(self, key: K) -> bool:
        return self._busy.get(key) is not None or any(key in waiting for waiting in self._lanes)

    def take(self) -> K | None:
        """The next key; the caller owes a `done` for it."""
        self._wake()
        urgent, resync = self._lanes
        oldest = next(iter(resync.values()), None)
        impatient = oldest is not None and self._clock() - oldest > PATIENCE_SECONDS
        lane = resync if impatient or not urgent else urgent
        if not lane:
            return None
        key, _ = lane.popitem(last=False)
        self._busy[key] = None
        return key

    def done(self, key: K, *, failed: bool = False) -> None:
        again = self._busy.pop(key)
        if failed:
            self._failures[key] = self._failures.get(key, 0) + 1
        else:
            self._failures.pop(key, None)
        if again is not None:
            self.add(key, again)
        elif failed:
            self.add_after(key, self._delay(self._failures[key]))

    def _delay(self, failures: int) -> float:
        longest = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16))
        return float(longest * (0.5 + 0.5 * self._jitter()))

    def _wake(self) -> None:
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            due, _, key = heapq.heappop(self._delayed)
            if self._due.get(key) == due:
                self.add(key, Lane.RESYNC)

    def due_in(self) -> float | None:
        """Seconds until a delayed key is due; None if none is delayed. Stale entries may make it too soon."""
        return max(0.0, self._delayed[0][0] - self._clock()) if self._delayed else None

    @property
    def depth(self) -> int:
        return sum(map(len, self._lanes))

    @property
    def oldest_seconds(self) -> float:
        """How long the key that waits longest has waited. It looks at all: a lifted key is older than its place tells."""
        since = [began for lane in self._lanes for began in lane.values()]
        return self._clock() - min(since) if since else 0.0


class WorkQueue(Generic[K]):
    """A backlog that a bounded number of workers empties. One event loop."""

    def __init__(self, workers: int) -> None:
        self.backlog: Backlog[K] = Backlog()
        self._workers = workers
        self._changed = asyncio.Event()

    def add(self, key: K, lane: Lane = Lane.URGENT) -> None:
        self.backlog.add(key, lane)
        self._changed.set()

    async def run(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        """Work for ever. `work` returns after how many seconds it wants to look again, None for not before something happens.

        What it raises is a failure of this one key: it is logged, and the key comes back later (Q4).
        """
        free = asyncio.Semaphore(self._workers)
        async with asyncio.TaskGroup() as group:
            while True:
                await free.acquire()
                key = await self._next()
                group.create_task(self._one(key, work)).add_done_callback(lambda _: free.release())

    async def _next(self) -> K:
        while (key := self.backlog.take()) is None:
            self._changed.clear()
            # Not wait_for: it makes a task, and kopf, when it ends, waits for tasks that are younger than itself.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.backlog.due_in()):
                    await self._changed.wait()
        return key

    async def _one(self, key: K, work: Callable[[K], Awaitable[float | None]]) -> None:
        failed, again = False, None
        try:
            again = await work(key)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever is wrong with this key, the others go on
            failed = True
            expected = getattr(error, "expected", False)
            log.warning("%s: %s: again later", key, error, exc_info=None if expected else error)
        self.backlog.done(key, failed=failed)
        if again is not None:
            self.backlog.add_after(key, again)
        self._changed.set()
