"""A model written against CacheAwareModel, sequence by sequence, runs in ragged batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from infer_engine.config import EngineConfig
from infer_engine.model.loader import load_model
from infer_engine.model.protocol import CacheAwareModel, ModelInfo, RaggedModel, SequenceCache

HEADS, KV_HEADS, HEAD_DIM, VOCAB_SIZE, LAYERS = 4, 2, 8, 61, 2


class ExampleModel:
    """A causal transformer in fifty lines: token and position embeddings, attention, nothing else."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        width = HEADS * HEAD_DIM

        def weight(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

        self.tokens, self.positions = weight(VOCAB_SIZE, width) * 5, weight(256, width) * 5
        self.query = [weight(width, width) for _ in range(LAYERS)]
        self.key = [weight(KV_HEADS * HEAD_DIM, width) for _ in range(LAYERS)]
        self.value = [weight(KV_HEADS * HEAD_DIM, width) for _ in range(LAYERS)]
        self.head = weight(VOCAB_SIZE, width)
        self.calls: list[tuple[str, int]] = []

    @property
    def info(self) -> ModelInfo:
        cpu = torch.device("cpu")
        return ModelInfo("example", LAYERS, KV_HEADS, HEAD_DIM, VOCAB_SIZE, 256, frozenset({0}), torch.float32, cpu)

    def prefill_with_cache(self, token_ids: torch.Tensor, start_position: int, cache: SequenceCache) -> torch.Tensor:
        self.calls.append(("prefill", len(token_ids)))
        return self._forward(token_ids, start_position, cache)

    def decode_with_cache(self, token_id: int, position: int, cache: SequenceCache) -> torch.Tensor:
        self.calls.append(("decode", 1))
        return self._forward(torch.tensor([token_id]), position, cache)

    def _forward(self, token_ids: torch.Tensor, start: int, cache: SequenceCache) -> torch.Tensor:
        assert cache.num_tokens == start
        count = len(token_ids)
        hidden = self.tokens[token_ids] + self.positions[start : start + count]
        visible = torch.ones(count, start + count, dtype=torch.bool).tril(start)
        for layer in range(LAYERS):
            query = (hidden @ self.query[layer].T).view(count, HEADS, HEAD_DIM).transpose(0, 1)
            cache.append(
                layer,
                (hidden @ self.key[layer].T).view(count, KV_HEADS, HEAD_DIM),
                (hidden @ self.value[layer].T).view(count, KV_HEADS, HEAD_DIM),
            )
            keys, values = (part.transpose(0, 1) for part in cache.read(layer))
            attended = scaled_dot_product_attention(query, keys, values, attn_mask=visible, enable_gqa=True)
            hidden = hidden + attended.transpose(0, 1).reshape(count, -1)
        return hidden[-1] @ self.head.T


class ListCache:
    """The simplest SequenceCache: what the runner's view of the pool is compared with."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.stored: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def append(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.stored[layer_idx] = (keys, values)

    def read(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.stored[layer_idx]


def expected_logits(tokens: list[int]) -> torch.Tensor:
    return ExampleModel().prefill_with_cache(torch.tensor(tokens), 0, ListCache())


def test_is_taken_for_what_it_is() -> None:
    assert isinstance(ExampleModel(), CacheAwareModel)
    loaded = load_model(ExampleModel(), EngineConfig())
    assert isinstance(loaded.model, RaggedModel)
    assert loaded.revision == load_model(ExampleModel(), EngineConfig()).revision


def test_a_torch_module_is_not_taken_for_a_ragged_model() -> None:
    class Module(ExampleModel, torch.nn.Module):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            ExampleModel.__init__(self)

    model = Module()
    assert load_model(model, EngineConfig()).model is not model


def test_a_ragged_model_is_used_as_it_is(arithmetic: Any) -> None:
    model = arithmetic()
    assert load_model(model, EngineConfig()).model is model


def test_chunks_prefixes_and_decodes_in_one_batch(ragged_run: Any, rows: Any) -> None:
    model = ExampleModel()
    run = ragged_run(load_model(model, EngineConfig()).model)
    first = np.random.default_rng(0).integers(0, VOCAB_SIZE, 30).tolist()
    sharer = [*first[:18], *np.random.default_rng(1).integers(0, VOCAB_SIZE, 5).tolist()]
    slots = np.random.default_rng(2).permutation(512).tolist()
    sharer_slots = [*slots[:18], *slots[30:35]]
    run.step(rows(first, slots, 0, 12))
    run.step(rows(first, slots, 12, 29))
    got = run.step(rows(first, slots, 29, 30), rows(sharer, sharer_slots, 18, 23))
    torch.testing.assert_close(got, torch.stack([expected_logits(first), expected_logits(sharer)]), atol=1e-4, rtol=0)
    assert model.calls == [("prefill", 12), ("prefill", 17), ("decode", 1), ("prefill", 5)]


def test_no_row_asked_for(ragged_run: Any, rows: Any) -> None:
    run = ragged_run(load_model(ExampleModel(), EngineConfig()).model)
    assert run.step(rows([1, 2], [0, 1], 0, 2), rows=[]).shape == (0, VOCAB_SIZE)


def test_only_last_rows_have_logits(ragged_run: Any, rows: Any) -> None:
    run = ragged_run(load_model(ExampleModel(), EngineConfig()).model)
    with pytest.raises(ValueError, match=r"logits_rows: \[0\]"):
        run.step(rows([1, 2], [0, 1], 0, 2), rows=[0])


@pytest.mark.parametrize(
    ("append", "message"),
    [
        (lambda cache: cache.append(LAYERS, torch.zeros(2, 2, 8), torch.zeros(2, 2, 8)), "layer_idx: got 2"),
        (lambda cache: cache.append(0, torch.zeros(2, 8), torch.zeros(2, 8)), "must be \\(2, 2, 8\\)"),
        (lambda cache: cache.append(0, torch.zeros(2, 2, 8), torch.zeros(2, 2, 8)), "layers \\[1\\]"),
    ],
)
def test_mistakes_of_a_model_are_named(append: Any, message: str, ragged_run: Any, rows: Any) -> None:
    class Wrong(ExampleModel):
        def _forward(self, token_ids: torch.Tensor, start: int, cache: SequenceCache) -> torch.Tensor:
            append(cache)
            return torch.zeros(VOCAB_SIZE)

    run = ragged_run(load_model(Wrong(), EngineConfig()).model)
    with pytest.raises(ValueError, match=message):
        run.step(rows([1, 2], [0, 1], 0, 2))


def test_logits_of_a_wrong_shape(ragged_run: Any, rows: Any) -> None:
    class Wrong(ExampleModel):
        def prefill_with_cache(
            self, token_ids: torch.Tensor, start_position: int, cache: SequenceCache
        ) -> torch.Tensor:
            return super().prefill_with_cache(token_ids, start_position, cache)[None]

    run = ragged_run(load_model(Wrong(), EngineConfig()).model)
    with pytest.raises(ValueError, match="logits: got shape"):
        run.step(rows([1, 2], [0, 1], 0, 2))
