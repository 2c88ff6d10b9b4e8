"""Who is admitted next: the requests that wait, in the order in which they shall run.

In: requests from any thread, preempted sequences from the step loop. Out: one at a time, to the step loop.
First come, first served; another order means another `peek` and nothing else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from infer_engine.scheduler.sequence import Sequence


class WaitingQueue:
    """Thread-safe: every method holds the short mutex for O(1), except `snapshot`."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, sequence: Sequence) -> None:
        with self._mutex:
            self._waiting[sequence.request_id] = sequence

    def push_front(self, sequence: Sequence) -> None:
        """For a preempted sequence: it was admitted before all that wait."""
        with self._mutex:
            self._waiting[sequence.request_id] = sequence
            self._waiting.move_to_end(sequence.request_id, last=False)

    def peek(self) -> Sequence | None:
        """The next to admit. It stays until `remove`d, so that one that does not fit yet keeps its place."""
        with self._mutex:
            return next(iter(self._waiting.values()), None)

    def remove(self, request_id: int) -> Sequence | None:
        """Take it out, admitted or ended; None if it does not wait here."""
        with self._mutex:
            return self._waiting.pop(request_id, None)

    def snapshot(self) -> list[Sequence]:
        with self._mutex:
            return list(self._waiting.values())
