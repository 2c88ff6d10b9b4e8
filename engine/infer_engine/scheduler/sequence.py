"""One request inside the scheduler: what was asked, what is known so far, and where its K/V lies.

In: a validated request from `InferenceEngine.submit`. Out: the state that schedule, ledger and output read and write.
A plain record, so that each field's single writer can be seen here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infer_engine.request import Event, SamplingParams, Usage

if TYPE_CHECKING:
    from infer_engine.cache import Handle
    from infer_engine.model.sampler import SamplingState
    from infer_engine.scheduler.output import Output

NO_ROW = -1


@dataclass(slots=True, eq=False)
class Sequence:
    """Positions are half-open intervals of `token_ids`:

    [0, num_prompt_tokens)            what the caller gave
    [num_prompt_tokens, num_tokens)   what was generated
    [num_computed, num_tokens)        known, K/V not computed yet: one token when decoding, more when prefilling
    [num_tokens, len(token_ids))      room for more output
    """

    # The request. Written once, at submit.
    request_id: int
    tenant: str
    namespace: str
    params: SamplingParams
    token_ids: npt.NDArray[np.int32]
    num_prompt_tokens: int
    deadline: float | None
    submitted_at: float
    on_event: Callable[[Event], None]
    sampling: SamplingState
    output: Output

    # Progress. Written by the scheduler.
    num_tokens: int
    prefill_end: int = 0
    """Tokens known at admission: until they are computed the sequence counts as prefilling."""
    num_cached_tokens: int = 0
    """As first admitted: a recomputation after a preemption is not the caller's."""
    num_prompt_done: int = 0
    """Prompt tokens that a step has computed or found in the cache, at most; a preemption takes none away."""
    admitted_at: float | None = None
    """First admission; None while it was never admitted."""
    last_token_at: float | None = None

    # Places in the pool. Written by the ledger.
    row: int = NO_ROW
    handle: Handle | None = None
    num_tree_tokens: int = 0
    num_computed: int = 0
    num_slots: int = 0
    may_share: bool = True
    """False once its namespace was dropped: nothing of it may enter the tree any more."""

    @property
    def num_pending(self) -> int:
        return self.num_tokens - self.num_computed

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < self.prefill_end

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    def usage(self) -> Usage:
        """Of a request that ends early too: what was computed for it, not what was asked for."""
        num_cached = min(self.num_cached_tokens, self.num_prompt_done)
        return Usage(self.num_prompt_done, num_cached, self.num_output_tokens)
