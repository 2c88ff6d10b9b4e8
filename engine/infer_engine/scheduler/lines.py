"""One tenant's requests that wait, in the order in which they came."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from infer_engine.scheduler.sequence import Sequence

NUM_CANDIDATES = 16
"""Requests at the head of a line whose prefixes are compared: each costs about a microsecond whenever one is chosen."""
MAX_OVERTAKEN = 64
"""So many of a line's requests may be admitted before its first one."""


class Line:
    """Every verb is O(1), but for `candidates` and iteration."""

    __slots__ = ("_num_overtaken", "_waiting")

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()
        self._num_overtaken = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())

    @property
    def first(self) -> Sequence:
        return next(iter(self._waiting.values()))

    @property
    def first_is_due(self) -> bool:
        """It was admitted once and preempted, or was passed over so often that a line of better hits would starve it."""
        return self._num_overtaken >= MAX_OVERTAKEN or self.first.admitted_at is not None

    def candidates(self) -> Iterator[Sequence]:
        return islice(self._waiting.values(), NUM_CANDIDATES)

    def append(self, sequence: Sequence) -> None:
        self._waiting[sequence.request_id] = sequence

    def put_back(self, sequence: Sequence) -> None:
        self._waiting[sequence.request_id] = sequence
        self._waiting.move_to_end(sequence.request_id, last=False)
        self._num_overtaken = 0

    def remove(self, sequence: Sequence) -> bool:
        """Whether it was there."""
        if sequence.request_id not in self._waiting:
            return False
        self._num_overtaken = 0 if sequence is self.first else self._num_overtaken + 1
        del self._waiting[sequence.request_id]
        return True
