"""The invariants of slot ownership (L1 to L4 of scheduler/ledger.py), checked in full. For tests: it walks everything."""

from __future__ import annotations

from collections.abc import Iterable

from infer_engine.cache import RadixCache
from infer_engine.memory.allocator import SlotAllocator
from infer_engine.scheduler.ledger import SlotLedger
from infer_engine.scheduler.sequence import NO_ROW, Sequence


def check_running(running: Iterable[Sequence], ledger: SlotLedger, cache: RadixCache, allocator: SlotAllocator) -> None:
    """Raises AssertionError. To be called between steps."""
    cache.check_integrity()
    own: list[int] = []
    rows: set[int] = set()
    own_by_tenant: dict[str, int] = {}
    for sequence in running:
        assert sequence.row != NO_ROW, f"request {sequence.request_id} runs without a row"
        assert sequence.row not in rows, f"two sequences share row {sequence.row}"
        rows.add(sequence.row)
        assert sequence.num_tree_tokens <= sequence.num_computed == sequence.num_slots < sequence.num_tokens, (
            f"L4 of request {sequence.request_id}: tree {sequence.num_tree_tokens}, computed {sequence.num_computed}, "
            f"slots {sequence.num_slots}, tokens {sequence.num_tokens}"
        )
        context = ledger.context(sequence, sequence.num_slots).tolist()
        own += context[sequence.num_tree_tokens :]
        own_by_tenant[sequence.tenant] = (
            own_by_tenant.get(sequence.tenant, 0) + sequence.num_slots - sequence.num_tree_tokens
        )
        if sequence.may_share and sequence.handle is not None:
            assert list(cache.slots(sequence.handle))[: sequence.num_tree_tokens] == context[: sequence.num_tree_tokens]
    assert len(set(own)) == len(own), "L1: two sequences own one slot"
    for group in cache.shares.groups():
        expected = own_by_tenant.pop(group.name, 0)
        assert group.num_running_tokens == expected, (
            f"{group.name!r} counts {group.num_running_tokens}, owns {expected}"
        )
    assert not any(own_by_tenant.values()), f"no group counts the slots of {own_by_tenant}"
    allocator_free = allocator.num_free
    tree = cache.num_tokens
    assert allocator_free + tree + len(own) == allocator.num_slots, (
        f"L1: free {allocator_free} + tree {tree} + own {len(own)} != pool {allocator.num_slots}"
    )
