"""Attention of one step's ragged batch over the KV pool, in plain torch; the same code for CPU and CUDA.

In: a ForwardBatch, then per layer the step's Q, K and V. Out: per layer the attention output of every row. K and V go to the
pool first; each sequence then gathers its own context from it, prefill chunk and decode alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.protocol import ForwardBatch


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What one sequence's n rows of the step attend to: the tokens at `slots`.

    mask: [n, len(slots)], True where a row sees a token; None with is_causal or where every row sees all.
    """

    slots: torch.Tensor
    mask: torch.Tensor | None
    is_causal: bool


class RaggedAttention:
    """Built once per step: index tensors and masks are the same in all layers. Valid as long as the pool's slots are."""

    def __init__(self, batch: ForwardBatch, pool: KVPool) -> None:
        self._pool = pool
        self._device = pool.device
        self._out_slots = torch.tensor(batch.out_slots, dtype=torch.int64, device=pool.device)
        # One transfer to the device for all sequences
        all_slots = torch.tensor(np.concatenate(batch.kv_slots), device=pool.device)
        self._slots = torch.split(all_slots, [len(slots) for slots in batch.kv_slots])
        self._num_rows = np.diff(batch.query_start).tolist()
        self._sequences: dict[int | None, list[_Sequence]] = {}

    def forward(
        self,
        layer_idx: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """query [num_heads, num_tokens, head_dim], key and value [num_kv_heads, ...]; returns [num_tokens, num_heads, head_dim].

        sliding_window: a token sees itself and the `sliding_window - 1` before it. softcap: scores become
        softcap * tanh(score / softcap) before masking.
        """
        self._pool.write(layer_idx, self._out_slots, key.transpose(0, 1), value.transpose(0, 1))
        num_heads, num_tokens, head_dim = query.shape
        num_kv_heads = key.shape[0]
        # Query heads that share a K/V head are grouped, so that K and V need no copies
        grouped = query.view(num_kv_heads, num_heads // num_kv_heads, num_tokens, head_dim)
        attended = []
        rows_of = torch.split(grouped, self._num_rows, dim=2)
        for sequence, rows in zip(self._for_window(sliding_window), rows_of, strict=True):
            keys, values = self._pool.read(layer_idx, sequence.slots)
            attended.append(_attend(rows, keys.transpose(0, 1), values.transpose(0, 1), sequence, scaling, softcap))
        return torch.cat(attended)

    def _for_window(self, window: int | None) -> list[_Sequence]:
        if window not in self._sequences:
            self._sequences[window] = [
                self._sequence(num_query, slots, window)
                for num_query, slots in zip(self._num_rows, self._slots, strict=True)
            ]
        return self._sequences[window]

    def _sequence(self, num_query: int, slots: torch.Tensor, window: int | None) -> _Sequence:
        num_context = slots.shape[0]
        first = 0 if window is None else max(0, num_context - num_query - window + 1)  # earlier ones no row sees
        num_seen = num_context - first
        if num_query == 1:
            return _Sequence(slots[first:], mask=None, is_causal=False)
        if num_seen == num_query and (window is None or num_query <= window):
            return _Sequence(slots[first:], mask=None, is_causal=True)
        distance = torch.arange(num_seen - num_query, num_seen, device=self._device)[:, None] - torch.arange(
            num_seen, device=self._device
        )
        mask = distance >= 0
        if window is not None:
            mask &= distance < window
        return _Sequence(slots[first:], mask, is_causal=False)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sequence: _Sequence,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """query [num_kv_heads, group, n, head_dim], keys and values [num_kv_heads, context, head_dim].

    Returns [n, num_heads, head_dim]. Called for each sequence in each layer, so that even views count: they are few.
    """
    num_kv_heads, group, num_rows, head_dim = query.shape
    keys, values = keys.unsqueeze(1), values.unsqueeze(1)
    if softcap is not None:
        attended = _attend_softcapped(query, keys, values, sequence, scaling, softcap)
    elif num_rows == 1:  # one row sees all: the heads of a group are then as good as rows
        folded = scaled_dot_product_attention(query.transpose(1, 2), keys, values, scale=scaling)
        return folded.reshape(1, num_kv_heads * group, head_dim)
    else:
        attended = scaled_dot_product_attention(
            query,
            keys.expand(-1, group, -1, -1),
            values.expand(-1, group, -1, -1),
            attn_mask=sequence.mask,
            is_causal=sequence.is_causal,
            scale=scaling,
        )
    return attended.reshape(num_kv_heads * group, num_rows, head_dim).transpose(0, 1)


def _attend_softcapped(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sequence: _Sequence,
    scaling: float,
    softcap: float,
) -> torch.Tensor:
    """torch's fused attention knows no softcap, so the scores are written out, with the softmax in float32.

    keys and values [num_kv_heads, 1, context, head_dim]; returns query's shape.
    """
    scores = torch.matmul(query, keys.transpose(2, 3)) * scaling
    scores = torch.tanh(scores / softcap) * softcap
    mask = sequence.mask
    if sequence.is_causal:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, values)
