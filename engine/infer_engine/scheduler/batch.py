"""One step's work: which sequences compute how many tokens, and the arrays that the model reads.

In: the scheduler's decisions (`Work`). Out: a `ScheduledBatch`, whose `forward` is what the model gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from infer_engine.model.protocol import ForwardBatch
from infer_engine.scheduler.sequence import Sequence


class Work(NamedTuple):
    """Tokens [sequence.num_computed, sequence.num_computed + num_tokens) of a sequence are computed in this step."""

    sequence: Sequence
    num_tokens: int
    slots: npt.NDArray[np.int32]
    """[num_computed + num_tokens] the context, a view of the ledger's table: valid until the step's update"""

    @property
    def is_prefill(self) -> bool:
        return self.sequence.is_prefilling

    @property
    def samples(self) -> bool:
        """Whether this step computes the last known token, so that the next one can be sampled."""
        return self.sequence.num_computed + self.num_tokens == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """Never empty. Row i of the step's logits belongs to `works[i]`: its last token in this step."""

    works: tuple[Work, ...]
    forward: ForwardBatch
    num_prefill_tokens: int
    num_decode_tokens: int


def build_batch(works: list[Work]) -> ScheduledBatch:
    """Every sequence's last row gives logits, also of an unfinished chunk: they tell whether its K/V is finite."""
    num_seqs = len(works)
    query_start = np.zeros(num_seqs + 1, dtype=np.int32)
    np.cumsum([work.num_tokens for work in works], out=query_start[1:])
    num_tokens = int(query_start[-1])
    input_ids = np.empty(num_tokens, dtype=np.int64)
    positions = np.empty(num_tokens, dtype=np.int64)
    out_slots = np.empty(num_tokens, dtype=np.int64)
    num_prefill = 0
    first = 0
    for work in works:
        sequence, num = work.sequence, work.num_tokens
        begin, end = sequence.num_computed, sequence.num_computed + num
        last = first + num
        if num == 1:  # a decode: plain assignments cost a fifth of slicing
            input_ids[first] = sequence.token_ids[begin]
            positions[first] = begin
            out_slots[first] = work.slots[begin]
        else:
            input_ids[first:last] = sequence.token_ids[begin:end]
            positions[first:last] = np.arange(begin, end)
            out_slots[first:last] = work.slots[begin:end]
        num_prefill += num if work.is_prefill else 0
        first = last
    forward = ForwardBatch(
        input_ids=input_ids,
        positions=positions,
        out_slots=out_slots,
        query_start=query_start,
        kv_slots=tuple(work.slots for work in works),
        logits_rows=query_start[1:].astype(np.int64) - 1,
    )
    return ScheduledBatch(tuple(works), forward, num_prefill, num_tokens - num_prefill)
