"""Slots: a tenant stays with its pods, load spreads, and what changes is what has to."""

from __future__ import annotations

import itertools
import uuid

from hypothesis import given
from hypothesis import strategies as st

from infer_operator.endpoints import PODS_PER_SLOT, SLOTS, assign_slots, slot_of

PODS = st.sets(st.uuids().map(str), max_size=12)


def pods_of(slots: dict[str, frozenset[int]], slot: int) -> set[str]:
    return {pod for pod, numbers in slots.items() if slot in numbers}


@given(PODS)
def test_each_slot_has_two_pods_or_all_that_there_are(pods: set[str]) -> None:
    slots = assign_slots(pods)
    assert slots.keys() == pods
    for slot in range(SLOTS):
        assert len(pods_of(slots, slot)) == min(PODS_PER_SLOT, len(pods))


@given(PODS, st.randoms())
def test_the_order_of_the_pods_does_not_matter(pods: set[str], random: object) -> None:
    shuffled = sorted(pods, key=lambda pod: hash((random, pod)))
    assert assign_slots(shuffled) == assign_slots(pods)


@given(PODS.filter(lambda pods: len(pods) >= 2), st.data())
def test_a_pod_that_goes_takes_only_its_own_slots_along(pods: set[str], data: st.DataObject) -> None:
    """And each of these keeps its other pod, which holds the tenants' cache."""
    gone = data.draw(st.sampled_from(sorted(pods)))
    before, after = assign_slots(pods), assign_slots(pods - {gone})
    for slot in range(SLOTS):
        kept = pods_of(before, slot) - {gone}
        assert kept <= pods_of(after, slot)
        if gone not in pods_of(before, slot):
            assert pods_of(after, slot) == pods_of(before, slot)


@given(PODS, st.uuids().map(str))
def test_a_pod_that_comes_moves_nobody_between_the_others(pods: set[str], new: str) -> None:
    before, after = assign_slots(pods - {new}), assign_slots(pods | {new})
    for slot in range(SLOTS):
        assert pods_of(after, slot) - {new} <= pods_of(before, slot)


def test_slots_are_spread_over_the_pods() -> None:
    pods = [str(uuid.UUID(int=number)) for number in range(8)]
    counts = [len(numbers) for numbers in assign_slots(pods).values()]
    assert sum(counts) == SLOTS * PODS_PER_SLOT
    assert min(counts) >= 4  # 16 on average
    assert max(counts) <= 32


def test_tenants_are_spread_over_the_slots() -> None:
    numbers = [slot_of(str(uuid.UUID(int=number))) for number in range(6400)]
    assert set(numbers) == set(range(SLOTS))
    counts = [len(list(group)) for _, group in itertools.groupby(sorted(numbers))]
    assert max(counts) < 150  # 100 on average


def test_a_tenant_s_slot_never_changes() -> None:
    """It is in the Service of every tenant that there is: another hash would move them all."""
    assert slot_of("11111111-2222-4333-8444-555555555555") == 36
