"""Attention of one step's ragged batch over the KV pool, in plain torch; the same code for CPU and CUDA.

In: a ForwardBatch, then per layer the step's Q, K and V. Out: per layer the attention output of every row. K and V go to the
pool first; each sequence then gathers its own context from it, prefill chunk and decode alike.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.protocol import ForwardBatch


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What one sequence's rows attend to: rows [start, end) of the step to the tokens at `slots`.

    mask: [end - start, len(slots)], True where a row sees a token; None with is_causal or where every row sees all.
    """

    start: int
    end: int
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
        self._bounds = list(itertools.pairwise(batch.query_start.tolist()))
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
        output = query.new_empty(num_tokens, num_heads, head_dim)
        for sequence in self._for_window(sliding_window):
            keys, values = self._pool.read(layer_idx, sequence.slots)
            rows = grouped[:, :, sequence.start : sequence.end]
            attended = _attend(rows, keys.transpose(0, 1), values.transpose(0, 1), sequence, scaling, softcap)
            output[sequence.start : sequence.end] = attended.reshape(num_heads, -1, head_dim).transpose(0, 1)
        return output

    def _for_window(self, window: int | None) -> list[_Sequence]:
        if window not in self._sequences:
            self._sequences[window] = [
                self._sequence(start, end, slots, window)
                for (start, end), slots in zip(self._bounds, self._slots, strict=True)
            ]
        return self._sequences[window]

    def _sequence(self, start: int, end: int, slots: torch.Tensor, window: int | None) -> _Sequence:
        num_query, num_context = end - start, slots.shape[0]
        first = 0 if window is None else max(0, num_context - num_query - window + 1)  # earlier ones no row sees
        num_seen = num_context - first
        if num_query == 1:
            return _Sequence(start, end, slots[first:], mask=None, is_causal=False)
        if num_seen == num_query and (window is None or num_query <= window):
            return _Sequence(start, end, slots[first:], mask=None, is_causal=True)
        distance = torch.arange(num_seen - num_query, num_seen, device=self._device)[:, None] - torch.arange(
            num_seen, device=self._device
        )
        mask = distance >= 0
        if window is not None:
            mask &= distance < window
        return _Sequence(start, end, slots[first:], mask, is_causal=False)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sequence: _Sequence,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """query [num_kv_heads, group, n, head_dim], keys and values [num_kv_heads, context, head_dim]; returns query's shape."""
    if softcap is not None:
        return _attend_softcapped(query, keys, values, sequence, scaling, softcap)
    if query.shape[2] == 1:  # one row sees all: the heads of a group are then as good as rows
        folded = query.transpose(1, 2)
        return scaled_dot_product_attention(folded, keys[:, None], values[:, None], scale=scaling).transpose(1, 2)
    shape = (query.shape[0], query.shape[1], *keys.shape[1:])
    return scaled_dot_product_attention(
        query,
        keys[:, None].expand(shape),
        values[:, None].expand(shape),
        attn_mask=sequence.mask,
        is_causal=sequence.is_causal,
        scale=scaling,
    )


def _attend_softcapped(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sequence: _Sequence,
    scaling: float,
    softcap: float,
) -> torch.Tensor:
    """torch's fused attention knows no softcap, so the scores are written out, with the softmax in float32."""
    scores = torch.matmul(query, keys[:, None].transpose(2, 3)) * scaling
    scores = torch.tanh(scores / softcap) * softcap
    mask = sequence.mask
    if sequence.is_causal:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, values[:, None])
