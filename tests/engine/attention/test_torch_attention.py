"""Attention over the pool against a plain loop over rows and tokens."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from infer_engine.attention.torch import RaggedAttention
from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.protocol import ForwardBatch

HEAD_DIM, MAX_TOKENS = 8, 200
CPU = torch.device("cpu")


def one_row(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, softcap: float | None
) -> torch.Tensor:
    """query [num_heads, head_dim], keys and values [context, num_kv_heads, head_dim], in float64."""
    group = query.shape[0] // keys.shape[1]
    output = torch.empty_like(query)
    for head in range(query.shape[0]):
        scores = keys[:, head // group] @ query[head] * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        output[head] = scores.softmax(0) @ values[:, head // group]
    return output


@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=5),
    group=st.sampled_from([1, 3]),
    num_kv_heads=st.sampled_from([1, 2]),
    window=st.sampled_from([None, 1, 4, 9, 100]),
    softcap=st.sampled_from([None, 1.5]),
    seed=st.integers(0, 10_000),
)
def test_equals_a_loop_over_rows(
    lengths: list[tuple[int, int]],
    group: int,
    num_kv_heads: int,
    window: int | None,
    softcap: float | None,
    seed: int,
) -> None:
    """lengths: per sequence, the tokens already in the pool and those of this step."""
    generator = torch.Generator().manual_seed(seed)
    pool = KVPool(2, MAX_TOKENS, num_kv_heads, HEAD_DIM, torch.float32, CPU)
    for layer in range(2):
        everything = torch.randn(2, MAX_TOKENS, num_kv_heads, HEAD_DIM, generator=generator)
        pool.write(layer, torch.arange(MAX_TOKENS), everything[0], everything[1])
    totals = [cached + new for cached, new in lengths]
    slots = np.split(np.random.default_rng(seed).permutation(MAX_TOKENS).astype(np.int32), np.cumsum(totals))[:-1]
    query_start = np.cumsum([0, *(new for _, new in lengths)])
    num_tokens = int(query_start[-1])
    batch = ForwardBatch(
        input_ids=np.zeros(num_tokens, np.int64),
        positions=np.concatenate([np.arange(cached, cached + new) for cached, new in lengths]),
        out_slots=np.concatenate(
            [own[cached:].astype(np.int64) for own, (cached, _) in zip(slots, lengths, strict=True)]
        ),
        query_start=query_start.astype(np.int32),
        kv_slots=tuple(slots),
        logits_rows=np.empty(0, np.int64),
    )
    query = torch.randn(num_kv_heads * group, num_tokens, HEAD_DIM, generator=generator)
    key = torch.randn(num_kv_heads, num_tokens, HEAD_DIM, generator=generator)
    value = torch.randn(num_kv_heads, num_tokens, HEAD_DIM, generator=generator)

    attention = RaggedAttention(batch, pool)
    got = attention.forward(1, query, key, value, scaling=0.4, sliding_window=window, softcap=softcap)

    keys, values = pool.keys[1].double(), pool.values[1].double()
    assert torch.equal(pool.keys[1][torch.tensor(batch.out_slots)], key.transpose(0, 1))
    for (cached, new), own, start in zip(lengths, slots, query_start[:-1].tolist(), strict=True):
        for row in range(new):
            seen = own[: cached + row + 1]
            seen = torch.tensor(seen if window is None else seen[-window:], dtype=torch.int64)
            expected = one_row(query[:, start + row].double(), keys[seen], values[seen], 0.4, softcap)
            torch.testing.assert_close(got[start + row].double(), expected, atol=1e-5, rtol=1e-5)


def test_other_layers_are_not_touched() -> None:
    pool = KVPool(2, 10, 1, HEAD_DIM, torch.float32, CPU)
    before = torch.ones(10, 1, HEAD_DIM)
    pool.write(0, torch.arange(10), before, before)
    batch = ForwardBatch(
        input_ids=np.zeros(2, np.int64),
        positions=np.arange(2),
        out_slots=np.array([3, 4]),
        query_start=np.array([0, 2], np.int32),
        kv_slots=(np.array([3, 4], np.int32),),
        logits_rows=np.array([1]),
    )
    one = torch.zeros(1, 2, HEAD_DIM)
    RaggedAttention(batch, pool).forward(1, one, one, one, scaling=1.0)
    assert torch.equal(pool.keys[0], before)
