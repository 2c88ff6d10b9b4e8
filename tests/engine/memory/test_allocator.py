"""Each slot has one owner at a time, and a wrong `free` changes nothing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given

from infer_engine.errors import RejectedError, RetryableError
from infer_engine.memory.allocator import OutOfSlotsError, SlotAllocator


def test_a_new_pool_gives_one_long_run() -> None:
    allocator = SlotAllocator(8)
    assert allocator.allocate(3) == array("i", [0, 1, 2])
    assert allocator.allocate(5) == array("i", [3, 4, 5, 6, 7])
    assert (allocator.num_free, allocator.num_slots) == (0, 8)


def test_all_or_nothing() -> None:
    allocator = SlotAllocator(4)
    allocator.allocate(3)
    with pytest.raises(OutOfSlotsError, match="2 slots wanted, 1 of 4 are free") as caught:
        allocator.allocate(2)
    assert isinstance(caught.value, RetryableError)
    assert allocator.num_free == 1
    assert allocator.allocate(1) == array("i", [3])


def test_slots_freed_apart_come_back_as_one_run() -> None:
    allocator = SlotAllocator(8)
    slots = allocator.allocate(8)
    for part in (slots[4:6], slots[2:4], slots[6:7]):
        allocator.free(part)
    assert allocator.allocate(5) == array("i", [2, 3, 4, 5, 6])


def test_the_search_goes_on_where_it_ended_and_then_round() -> None:
    allocator = SlotAllocator(6)
    allocator.allocate(4)
    allocator.free([0, 2])
    assert allocator.allocate(4) == array("i", [4, 5, 0, 2])
    allocator.check_integrity()


def test_no_slots_are_nothing() -> None:
    allocator = SlotAllocator(2)
    assert allocator.allocate(0) == array("i")
    allocator.free(array("i"))
    assert allocator.num_free == 2


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (array("i", [0, 1]), "free of slot 0, which is free already"),
        (array("i", [2, 0, 3]), "free of slot 0, which is free already"),
        (array("i", [2, 3, 2]), "the same slot twice"),
        (array("i", [3, 4]), "free of slot 4: slots go from 0 to 3"),
        (array("i", [-1]), "free of slot -1: slots go from 0 to 3"),
        (array("i", [2, -2]), "free of slot -2"),
        (array("i", [99]), "free of slot 99"),
    ],
)
def test_a_wrong_free_is_an_error_and_changes_nothing(slots: Sequence[int], message: str) -> None:
    allocator = SlotAllocator(4)
    allocator.free(allocator.allocate(4)[:2])
    with pytest.raises(AssertionError, match=message):
        allocator.free(slots)
    assert allocator.num_free == 2
    allocator.check_integrity()
    assert sorted(allocator.allocate(2)) == [0, 1]


@pytest.mark.parametrize("num_slots", [0, -1, True, 1.5, None])
def test_a_pool_has_at_least_one_slot(num_slots: int) -> None:
    with pytest.raises(RejectedError, match=r"num_slots: got .*; must be an integer of at least 1"):
        SlotAllocator(num_slots)


def test_a_negative_number_of_slots_is_refused() -> None:
    with pytest.raises(RejectedError, match="n: got -1; must be at least 0"):
        SlotAllocator(1).allocate(-1)


@pytest.mark.parametrize(("field", "value"), [("_num_free", 3), ("_next_idx", 9), ("_flags", bytearray(b"\1\1\1\7"))])
def test_check_integrity_finds_damage(field: str, value: object) -> None:
    allocator = SlotAllocator(4)
    setattr(allocator, field, value)
    with pytest.raises(AssertionError):
        allocator.check_integrity()


@given(data=st.data(), num_slots=st.integers(1, 24))
def test_every_slot_is_free_or_has_one_owner(data: st.DataObject, num_slots: int) -> None:
    allocator = SlotAllocator(num_slots)
    owned: set[int] = set()
    for wanted in data.draw(st.lists(st.integers(-12, 12), max_size=40)):
        if wanted >= 0 and wanted <= allocator.num_free:
            given_out = allocator.allocate(wanted)
            assert len(given_out) == len(set(given_out)) == wanted
            assert owned.isdisjoint(given_out)
            owned.update(given_out)
        elif wanted >= 0:
            with pytest.raises(OutOfSlotsError):
                allocator.allocate(wanted)
        elif owned:
            back = data.draw(st.lists(st.sampled_from(sorted(owned)), unique=True, max_size=-wanted))
            allocator.free(array("i", back))
            owned.difference_update(back)
        allocator.check_integrity()
        assert allocator.num_free == num_slots - len(owned)
        assert owned <= set(range(num_slots))
