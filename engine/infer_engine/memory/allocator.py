"""Who hands out the slots of the KV pool.

In: how many slots are wanted, and slots that their owner gives back. Out: slots, each to one owner at a time. One flag per
slot is the whole state, so giving a slot back twice is seen at once and neighbouring free slots need no merging.
Not thread-safe: the engine serialises calls.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from infer_engine.errors import RejectedError, RetryableError

FREE = b"\x01"
USED = b"\x00"


class OutOfSlotsError(RetryableError):
    """Fewer slots are free than were asked for; evict from the prefix cache, or wait for a request to end."""

    code = "out_of_slots"
    retry_ms = 250


class SlotAllocator:
    """Slots 0 to num_slots - 1, all free at first.

    Next fit: the search goes on where the last one ended, so slots come in address order and in runs as long as the free
    stretches in its way. Cost per slot is constant; finding the stretches is a memchr over the flags, at most once round
    (about 2 us for 65,536 slots).
    """

    __slots__ = ("_flags", "_next_idx", "_num_free", "_numbers")

    def __init__(self, num_slots: int) -> None:
        """Raises RejectedError unless `num_slots` is a positive integer."""
        if isinstance(num_slots, bool) or not isinstance(num_slots, int) or num_slots < 1:
            raise RejectedError(f"num_slots: got {num_slots!r}; must be an integer of at least 1")
        self._flags = bytearray(FREE * num_slots)
        self._numbers = array("i", range(num_slots))  # constant: a run is cut out of it, not counted up
        self._num_free = num_slots
        self._next_idx = 0

    @property
    def num_slots(self) -> int:
        return len(self._flags)

    @property
    def num_free(self) -> int:
        return self._num_free

    def allocate(self, n: int) -> array[int]:
        """`n` free slots, now the caller's. All or nothing: raises OutOfSlotsError, with nothing taken, if fewer are free."""
        if n < 0:
            raise RejectedError(f"n: got {n}; must be at least 0")
        if n > self._num_free:
            raise OutOfSlotsError(f"{n} slots wanted, {self._num_free} of {self.num_slots} are free")
        flags = self._flags
        slots = array("i")
        num_missing = n
        while num_missing > 0:
            start = flags.find(FREE, self._next_idx)
            if start < 0:
                start = flags.find(FREE)
            end = flags.find(USED, start, start + num_missing)
            if end < 0:
                end = min(start + num_missing, len(flags))
            slots += self._numbers[start:end]
            flags[start:end] = bytes(end - start)
            self._next_idx = end
            num_missing -= end - start
        self._num_free -= n
        return slots

    def free(self, slots: Sequence[int]) -> None:
        """Take back slots that `allocate` handed out. Raises AssertionError, with nothing taken back, if one is not out."""
        num_given = len(slots)
        if num_given == 0:
            return
        first = slots[0]
        if 0 <= first <= self.num_slots - num_given and slots == self._numbers[first : first + num_given]:
            if FREE in self._flags[first : first + num_given]:
                raise self._double_free(slots)
            self._flags[first : first + num_given] = FREE * num_given
        else:
            self._free_scattered(slots)
        self._num_free += num_given

    def check_integrity(self) -> None:
        """Raise AssertionError if the state contradicts itself. O(num_slots)."""
        num_free = self._flags.count(FREE)
        assert num_free == self._num_free, f"num_free is {self._num_free}, counted {num_free}"
        assert num_free + self._flags.count(USED) == len(self._flags), "a flag is neither free nor used"
        assert 0 <= self._next_idx <= len(self._flags), f"the search stands at {self._next_idx}, outside of the pool"

    def _free_scattered(self, slots: Sequence[int]) -> None:
        flags = self._flags
        for slot in (min(slots), max(slots)):
            if not 0 <= slot < len(flags):
                raise AssertionError(f"free of slot {slot}: slots go from 0 to {len(flags) - 1}")
        if len(set(slots)) != len(slots):
            raise AssertionError("free of the same slot twice in one call")
        if any(map(flags.__getitem__, slots)):
            raise self._double_free(slots)
        for slot in slots:
            flags[slot] = 1

    def _double_free(self, slots: Sequence[int]) -> AssertionError:
        slot = next(slot for slot in slots if self._flags[slot])
        return AssertionError(f"free of slot {slot}, which is free already")
