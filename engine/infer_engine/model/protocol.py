"""The seam between the engine and a model: what a step hands over, and what a model must be able to do.

In: one ragged batch (ForwardBatch) and the pool that holds earlier K/V. Out: logits of the rows that were asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from infer_engine.memory.kv_pool import KVPool


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The sizes that the engine needs to know of any model."""

    name: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    dtype: torch.dtype
    device: torch.device

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's sequences packed one after another; prefill chunks and decodes are the same thing here.

    Sequence i owns rows [query_start[i], query_start[i+1]) of the three token arrays. Its context after this step is
    `kv_slots[i]`, in position order; the last of those slots are the ones written in this step:
    kv_slots[i][-num_query_i:] == out_slots[query_start[i]:query_start[i+1]].
    """

    input_ids: npt.NDArray[np.int64]
    """[num_tokens]"""
    positions: npt.NDArray[np.int64]
    """[num_tokens]"""
    out_slots: npt.NDArray[np.int64]
    """[num_tokens] where in the pool each token's K and V go"""
    query_start: npt.NDArray[np.int32]
    """[num_seqs + 1]"""
    kv_slots: tuple[npt.NDArray[np.int32], ...]
    """num_seqs arrays of [kv_len_i]"""
    logits_rows: npt.NDArray[np.int64]
    """[num_outputs] the rows whose logits are wanted"""

    @property
    def num_seqs(self) -> int:
        return len(self.kv_slots)

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)


@runtime_checkable
class RaggedModel(Protocol):
    """What the engine calls. Not thread-safe: the engine's model mutex serialises calls."""

    @property
    def info(self) -> ModelInfo: ...

    def forward(self, batch: ForwardBatch, pool: KVPool) -> torch.Tensor:
        """Write the step's K/V to `pool` and return float32 logits [num_outputs, vocab_size] on the model's device."""
        ...


class SequenceCache(Protocol):
    """One sequence's view of the KV pool, for models that think in sequences rather than in ragged batches."""

    @property
    def num_tokens(self) -> int:
        """Tokens whose K/V may be read."""
        ...

    def append(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store K and V, each [n, num_kv_heads, head_dim], of this call's n tokens for one layer."""
        ...

    def read(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [num_tokens + n, num_kv_heads, head_dim], this call's appended ones included."""
        ...


@runtime_checkable
class CacheAwareModel(Protocol):
    """The two methods to implement to have a model of your own served; `model/runner.py` makes a RaggedModel of it."""

    @property
    def info(self) -> ModelInfo: ...

    def prefill_with_cache(self, token_ids: torch.Tensor, start_position: int, cache: SequenceCache) -> torch.Tensor:
        """Compute prompt tokens [n] from `start_position` on; return the last one's logits [vocab_size]."""
        ...

    def decode_with_cache(self, token_id: int, position: int, cache: SequenceCache) -> torch.Tensor:
        """Compute one generated token; return its logits [vocab_size]."""
        ...
