"""The requests that wait, a line for each tenant, until the policy says that it is their turn.

In: requests from any thread, preempted sequences from the step loop. Out: the next to admit, one at a time, to the step loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator

from infer_engine.scheduler.fairness import AdmissionPolicy
from infer_engine.scheduler.lines import MAX_OVERTAKEN, Line
from infer_engine.scheduler.sequence import Sequence


class WaitingQueue:
    """`push` and `len` from any thread; all else is the step loop's."""

    def __init__(self, policy: AdmissionPolicy, num_matched: Callable[[Sequence], int]) -> None:
        """num_matched: how many leading tokens of a request are in the prefix cache now."""
        self._policy = policy
        self._num_matched = num_matched
        self._matched: dict[int, int] = {}
        """request id -> what `num_matched` gave in this step. Nothing enters the cache while requests are chosen."""
        self._arrivals: deque[Sequence] = (
            deque()
        )  # appended to by any thread, emptied by the step loop: both are atomic
        self._lines: dict[str, Line] = {}  # none of them is empty
        self._num_in_lines = 0
        self._next: Sequence | None = None  # chosen, not admitted yet
        self._preferred: Sequence | None = None  # goes before it in this step
        self._num_preferred = 0  # to the one that is next
        self._passed_over: set[str] = set()  # tenants whose requests can't be admitted in this step

    def __len__(self) -> int:
        return len(self._arrivals) + self._num_in_lines

    def __iter__(self) -> Iterator[Sequence]:
        """Those in line, as of now: they may be removed meanwhile."""
        return iter([sequence for line in self._lines.values() for sequence in line])

    def push(self, sequence: Sequence) -> None:
        self._arrivals.append(sequence)

    def line_up(self, running: Collection[Sequence]) -> None:
        """A step begins: take the arrivals into their lines. `running`: who runs now."""
        self._passed_over.clear()
        self._preferred = None
        self._matched.clear()
        if not self._arrivals:
            return
        busy = {sequence.tenant for sequence in running}
        for _ in range(len(self._arrivals)):
            sequence = self._arrivals[0]
            if sequence.tenant not in self._lines and sequence.tenant not in busy:
                self._policy.joined(sequence.tenant, busy | self._lines.keys())
            self._line(sequence.tenant).append(sequence)
            self._num_in_lines += 1
            self._arrivals.popleft()  # counted twice for a moment rather than not at all: `len` never says 0 too early

    def put_back(self, sequence: Sequence) -> None:
        """A preempted one, to the front of its tenant's line: it was admitted before all that wait there."""
        self._line(sequence.tenant).put_back(sequence)
        self._num_in_lines += 1
        if self._next is not None and self._next.tenant == sequence.tenant:
            self._next = None

    def peek(self) -> Sequence | None:
        """The next to admit. One that does not fit yet keeps its turn, until another of its tenant is put back."""
        if self._preferred is not None:
            return self._preferred
        if self._next is None:
            self._num_preferred = 0
            lines = self._lines
            if self._passed_over:
                lines = {tenant: line for tenant, line in lines.items() if tenant not in self._passed_over}
            if lines:
                self._next = self._policy.choose(lines, self._matched_in_step)
        return self._next

    def prefer_one(self, has_precedence: Callable[[Sequence], bool]) -> None:
        """In this step the first of a line goes before the next one, which waits for room; so often that it does not starve."""
        if self._num_preferred < MAX_OVERTAKEN:
            firsts = (line.first for line in self._lines.values())
            self._preferred = next(
                (first for first in firsts if first is not self._next and has_precedence(first)), None
            )
            self._num_preferred += self._preferred is not None

    def pass_over(self, sequence: Sequence) -> None:
        """Its tenant can't have it now, which is no reason for others to wait: choose among theirs until the next step."""
        self._passed_over.add(sequence.tenant)
        if sequence is self._preferred:
            self._preferred = None
        else:
            self._next = None

    def remove(self, sequence: Sequence) -> bool:
        """Take it out of its line, admitted or ended; whether it stood there."""
        line = self._lines.get(sequence.tenant)
        if line is None or not line.remove(sequence):
            return False
        self._num_in_lines -= 1
        if not line:
            del self._lines[sequence.tenant]
        if sequence is self._next:
            self._next = None
        if sequence is self._preferred:
            self._preferred = None
        return True

    def _matched_in_step(self, sequence: Sequence) -> int:
        num_matched = self._matched.get(sequence.request_id)
        if num_matched is None:
            num_matched = self._matched[sequence.request_id] = self._num_matched(sequence)
        return num_matched

    def _line(self, tenant: str) -> Line:
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = Line()
        return line
