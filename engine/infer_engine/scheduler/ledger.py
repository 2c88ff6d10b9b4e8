"""Who owns which slot: the only place that moves slots between the free list, the prefix cache and running sequences.

In: the scheduler's verbs (admit, grow, commit, share, release). Out: slots in a sequence's row of the table.

Row of a running sequence, as half-open intervals:

    [0, num_tree_tokens)                the tree's, pinned by the sequence's lock on `handle`
    [num_tree_tokens, num_computed)     the sequence's own, K/V computed
    [num_computed, num_slots)           the sequence's own, written by the step in progress

Invariants, checked by `scheduler/integrity.py`:
    L1  every slot has one owner: free list, tree, or one sequence's [num_tree_tokens, num_slots).
    L2  lock before evict: slots that a sequence reads are pinned before anything is evicted for it.
    L3  insert before unlock: a sequence's computed tokens are in the tree before its pin goes for good, and while one pin
        is exchanged for a longer one nothing is evicted.
    L4  num_tree_tokens <= num_computed <= num_slots, and between steps num_computed == num_slots.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from infer_engine.cache import RadixCache, RadixKey
from infer_engine.cache.shares import ShareGroup
from infer_engine.memory.allocator import SlotAllocator
from infer_engine.scheduler.sequence import NO_ROW, Sequence

EVICTION_BATCH = 256
"""Slots evicted at once where a step needs fewer: trimming a long leaf token by token would copy it each time."""


class Verdict(Enum):
    """What became of a request that wanted to be admitted."""

    ADMITTED = auto()
    POOL_FULL = auto()
    SHARE_FULL = auto()
    """Its tenant may hold no more; others may."""


class SlotLedger:
    """`use_cache` False: nothing is looked up and nothing enters the tree."""

    def __init__(
        self, cache: RadixCache, allocator: SlotAllocator, *, max_sequences: int, max_tokens: int, use_cache: bool
    ) -> None:
        self._cache = cache
        self._allocator = allocator
        self._use_cache = use_cache
        self._table = np.zeros((max_sequences, max_tokens), dtype=np.int32)
        self._free_rows = list(range(max_sequences - 1, -1, -1))
        self._slots_to_zero = array("i")
        self._eviction_batch = min(EVICTION_BATCH, allocator.num_slots // 32)

    def group(self, sequence: Sequence) -> ShareGroup:
        return self._cache.shares[sequence.tenant]

    def num_obtainable(self, tenant: str) -> int:
        """Slots that the pool has for it: free ones and those that may be evicted for it."""
        return self._allocator.num_free + self._cache.shares.num_payable(tenant)

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    def context(self, sequence: Sequence, num_tokens: int) -> npt.NDArray[np.int32]:
        """Slots of the first tokens; a view that is valid until the sequence is shared or released."""
        return self._table[sequence.row, :num_tokens]

    def num_matched(self, sequence: Sequence) -> int:
        """Leading tokens of a request that waits which `admit` would find in the cache now."""
        return self._cache.num_matched(self._key(sequence, sequence.num_tokens - 1)) if self._use_cache else 0

    def admit(self, sequence: Sequence, promised: Mapping[str, int]) -> Verdict:
        """Pin the cached prefix and give a row, if all known tokens fit beside the slots promised to running requests.

        promised: per tenant. At most all but the last known token come from the cache: that one is computed, for its logits.
        """
        handle, num_matched = None, 0
        if self._use_cache:
            match = self._cache.match_prefix(self._key(sequence, sequence.num_tokens - 1), lock=True)  # keeps L2
            handle, num_matched = match.handle, match.num_tokens
        verdict = self._verdict(sequence.tenant, sequence.num_tokens - num_matched, promised)
        if verdict is not Verdict.ADMITTED:
            if handle is not None:
                self._free(self._cache.unlock(handle), self.group(sequence))
            return verdict
        group = self.group(sequence)
        sequence.handle = handle
        sequence.row = self._free_rows.pop()
        if num_matched:
            self._table[sequence.row, :num_matched] = _as_numpy(match.slots)
        sequence.num_tree_tokens = sequence.num_computed = sequence.num_slots = num_matched
        sequence.prefill_end = sequence.num_tokens
        sequence.may_share = sequence.may_share and group.share.insert
        if sequence.admitted_at is None and self._use_cache:
            group.num_looked_up_tokens += sequence.num_prompt_tokens
            group.num_hit_tokens += num_matched
        return verdict

    def _verdict(self, tenant: str, num_wanted: int, promised: Mapping[str, int]) -> Verdict:
        group = self._cache.shares[tenant]
        room = group.num_room
        if room is not None and num_wanted + promised.get(tenant, 0) > room:
            return Verdict.SHARE_FULL
        if num_wanted + self._num_promised(promised, tenant) > self.num_obtainable(tenant):
            return Verdict.POOL_FULL
        return Verdict.ADMITTED

    def _num_promised(self, promised: Mapping[str, int], asker: str) -> int:
        """What stands before the asker's wish. What others can pay out of their own minima is none of it."""
        num_promised = 0
        for tenant, num_tokens in promised.items():
            group = self._cache.shares[tenant]
            num_promised += max(0, num_tokens - (group.num_evictable - group.num_payable(asker)))
        return num_promised

    def is_hopeless(self, sequence: Sequence) -> bool:
        """Whether the pool can't take it even when all that runs is done, beside what others have of their minima now."""
        num_kept = 0
        for group in self._cache.shares.groups():
            if group.share.min_tokens and group.name != sequence.tenant:
                stays = self._use_cache and group.share.insert
                num_left = group.num_held if stays else group.num_tokens
                num_kept += min(group.share.min_tokens, num_left)
        return sequence.num_tokens > self._allocator.num_slots - num_kept

    def has_room_in_minimum(self, sequence: Sequence) -> bool:
        """Whether its tenant's minimum has room for a request which waits, with what it can evict of its own."""
        group = self.group(sequence)
        if sequence.num_tokens > group.share.min_tokens:
            return False
        num_beside = min(group.num_pinned, group.num_held - self.num_matched(sequence))
        return num_beside + sequence.num_tokens <= group.share.min_tokens

    def num_missing(self, sequence: Sequence, promised: Mapping[str, int]) -> int:
        """Slots that the pool lacks for a request which waits, if its tenant's minimum has room for it; else 0."""
        if not self.has_room_in_minimum(sequence):
            return 0
        num_wanted = sequence.num_tokens - self.num_matched(sequence)
        return max(0, num_wanted + self._num_promised(promised, sequence.tenant) - self.num_obtainable(sequence.tenant))

    def grow(self, sequence: Sequence, num_wanted: int) -> int:
        """Give the sequence up to `num_wanted` more slots, evicting where needed; how many it got, possibly 0."""
        group = self.group(sequence)
        if group.share.max_tokens is not None:
            excess = group.num_held + num_wanted - group.share.max_tokens
            if excess > 0:
                self._free(self._cache.evict_from(group, max(excess, self._eviction_batch), "quota"), group)
                num_wanted = min(num_wanted, group.share.max_tokens - group.num_held)
        short = num_wanted - self._allocator.num_free
        if short > 0:
            for payer, slots in self._cache.evict_in_turns(max(short, self._eviction_batch), sequence.tenant):
                self._free(slots, payer)
        num_given = min(num_wanted, self._allocator.num_free)
        if num_given <= 0:
            return 0
        end = sequence.num_slots + num_given
        self._table[sequence.row, sequence.num_slots : end] = _as_numpy(self._allocator.allocate(num_given))
        sequence.num_slots = end
        group.num_running_tokens += num_given
        return num_given

    def commit(self, sequence: Sequence) -> None:
        """The step in progress has written the sequence's slots."""
        sequence.num_computed = sequence.num_slots
        sequence.num_prompt_done = max(sequence.num_prompt_done, min(sequence.num_computed, sequence.num_prompt_tokens))

    def share(self, sequence: Sequence) -> None:
        """Move the computed tokens into the tree, so that others hit them while this sequence runs.

        Where the tree already has them (a neighbour in the batch had the same prompt) the sequence goes over to the
        tree's slots and its duplicates [num_tree_tokens, num_existing) are freed.
        """
        num_tokens = sequence.num_computed
        if not self._use_cache or not sequence.may_share or num_tokens == sequence.num_tree_tokens:
            return
        row = self._table[sequence.row]
        group = self.group(sequence)
        num_tree = sequence.num_tree_tokens
        if sequence.handle is not None:
            # Unlocked first, a leaf that only this sequence holds grows in place. Nothing is evicted until it is locked again.
            self._free(self._cache.unlock(sequence.handle), group)
        result = self._cache.insert(self._key(sequence, num_tokens), array("i", row[:num_tokens].tobytes()))
        self._cache.lock(result.handle)  # keeps L3
        sequence.handle = result.handle
        if result.num_existing > num_tree:
            duplicates = array("i", row[num_tree : result.num_existing].tobytes())
            tree_slots = _as_numpy(self._cache.slots(result.handle))
            row[num_tree : result.num_existing] = tree_slots[num_tree : result.num_existing]
            self._free(duplicates, group)
        group.num_running_tokens -= num_tokens - num_tree
        sequence.num_tree_tokens = num_tokens

    def release(self, sequence: Sequence, *, keep: bool) -> None:
        """Take the sequence out of the pool; with `keep` its computed tokens stay in the tree, evictable."""
        if keep:
            self.share(sequence)
        own = self._table[sequence.row, sequence.num_tree_tokens : sequence.num_slots]
        group = self.group(sequence)
        self._free(array("i", own.tobytes()), group)
        group.num_running_tokens -= len(own)
        if sequence.handle is not None:
            self._free(self._cache.unlock(sequence.handle), group)
            sequence.handle = None
        self._free_rows.append(sequence.row)
        sequence.row = NO_ROW
        sequence.num_tree_tokens = sequence.num_computed = sequence.num_slots = 0

    def expire(self, group: ShareGroup, before: float) -> None:
        """Forget what of a tenant was last used before then."""
        self._free(self._cache.expire(group, before), group)

    def drop_namespace(self, namespace: str, unfinished: Iterable[Sequence]) -> None:
        """Forget a namespace. What running sequences pin is freed when they end; their own tokens no longer enter the tree."""
        for sequence in unfinished:
            if sequence.namespace == namespace:
                sequence.may_share = False
        group = self._cache.group_of(namespace)
        if group is not None:
            self._free(self._cache.drop_namespace(namespace), group)

    def take_slots_to_zero(self) -> array[int]:
        """Freed slots that nobody may read any more: to be overwritten before the next step writes."""
        slots, self._slots_to_zero = self._slots_to_zero, array("i")
        return slots

    def _key(self, sequence: Sequence, num_tokens: int) -> RadixKey:
        return RadixKey.with_namespace(sequence.token_ids[:num_tokens], sequence.namespace, sequence.tenant)

    def _free(self, slots: array[int], group: ShareGroup) -> None:
        """`group`: whose they were."""
        if slots:
            self._allocator.free(slots)
            if group.share.zero_on_free:
                self._slots_to_zero += slots


def _as_numpy(slots: array[int]) -> npt.NDArray[np.int32]:
    return np.frombuffer(slots, dtype=np.int32)
