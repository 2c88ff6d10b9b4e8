"""Ragged batches through the pool give the logits that the model itself computes, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from infer_engine.config import EngineConfig
from infer_engine.errors import ModelLoadError
from infer_engine.model.loader import load_model
from infer_engine.model.transformers import TransformersModel

CPU = torch.device("cpu")
SUPPORTED = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2", "phi3", "mixtral"]
TinyModel = Callable[..., PreTrainedModel]


def own_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(attention)


def random_tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 257, count).tolist()


@pytest.mark.parametrize("name", SUPPORTED)
def test_chunks_decodes_and_shared_prefixes_in_one_batch(
    name: str, tiny_model: TinyModel, ragged_run: Any, rows: Any
) -> None:
    model = tiny_model(name)
    first, second = random_tokens(40, 1), random_tokens(31, 2)
    sharer = first[:25] + random_tokens(12, 3)  # its first 25 tokens are computed by `first`
    expected = {id(tokens): own_logits(model, tokens) for tokens in (first, second, sharer)}
    run = ragged_run(TransformersModel(model, name, device=CPU))
    slots = np.random.default_rng(4).permutation(512).tolist()
    first_slots, second_slots = slots[:40], slots[40:71]
    sharer_slots = first_slots[:25] + slots[71:83]

    got = run.step(rows(first, first_slots, 0, 17), rows(second, second_slots, 0, 30))
    torch.testing.assert_close(got, torch.stack([expected[id(first)][16], expected[id(second)][29]]), atol=1e-4, rtol=0)
    # a chunk and a decode
    got = run.step(rows(first, first_slots, 17, 39), rows(second, second_slots, 30, 31))
    torch.testing.assert_close(got, torch.stack([expected[id(first)][38], expected[id(second)][30]]), atol=1e-4, rtol=0)
    # a chunk behind another's prefix, and a decode; all rows are asked for
    got = run.step(rows(sharer, sharer_slots, 25, 37), rows(first, first_slots, 39, 40), rows=range(13))
    torch.testing.assert_close(got, torch.cat([expected[id(sharer)][25:], expected[id(first)][39:]]), atol=1e-4, rtol=0)
    assert got.dtype == torch.float32


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_sliding_window_limits_what_is_seen(name: str, tiny_model: TinyModel, ragged_run: Any, rows: Any) -> None:
    """The expected logits above come from the library's mask; here it is seen to matter at all."""
    tokens = random_tokens(40, 1)
    windowed = tiny_model(name)
    unlimited = tiny_model(name, sliding_window=1000)
    run = ragged_run(TransformersModel(windowed, name, device=CPU))
    got = run.step(rows(tokens, range(40), 0, 40))
    assert (got[0] - own_logits(unlimited, tokens)[-1]).abs().max() > 1e-2


def test_no_logits_asked_for(tiny_model: TinyModel, ragged_run: Any, rows: Any) -> None:
    run = ragged_run(TransformersModel(tiny_model("llama"), "llama", device=CPU))
    assert run.step(rows(random_tokens(4, 1), range(4), 0, 4), rows=[]).shape == (0, 257)


def test_decode_batch_is_bitwise_what_each_sequence_gets_alone(smollm2: Any, ragged_run: Any, rows: Any) -> None:
    """Packed bfloat16 products and per-sequence attention do not depend on the neighbours."""
    sequences = [random_tokens(length, length) for length in (5, 12, 33, 60)]
    slots = np.split(np.random.default_rng(0).permutation(110), [5, 17, 50])
    run = ragged_run(smollm2.model)
    run.step(*(rows(tokens, own, 0, len(tokens) - 1) for tokens, own in zip(sequences, slots, strict=True)))
    decodes = [rows(tokens, own, len(tokens) - 1, len(tokens)) for tokens, own in zip(sequences, slots, strict=True)]
    together = run.step(*decodes)
    alone = torch.cat([run.step(decode) for decode in decodes])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("falcon", "does not go through"),
        ("bloom", "does not go through"),
        ("gpt_oss", "s_aux"),
        ("llama4", "chunked attention"),
        ("deepseek", "must be the same"),
        ("mamba", "state-space"),
        ("qwen3_next", "state-space"),
    ],
)
def test_other_architectures_are_refused(name: str, reason: str, tiny_model: TinyModel) -> None:
    with pytest.raises(ModelLoadError, match=reason) as caught:
        load_model(tiny_model(name), EngineConfig(device="cpu"))
    assert caught.value.code == "unsupported_model"


def test_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=257, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    with pytest.raises(ModelLoadError, match="encoder-decoder"):
        load_model(T5ForConditionalGeneration(config), EngineConfig(device="cpu"))


def test_wrong_scores_are_found_by_the_self_check(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that goes through the attention interface and means something else by it."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.scaling *= 1.5  # our attention is told this one ...
    original = type(model.model.layers[0].self_attn).forward

    def eager_differs(self: Any, *args: Any, **kwargs: Any) -> Any:
        changed = self.config._attn_implementation == "eager"
        self.scaling = self.scaling / 1.5 if changed else self.scaling  # ... the model's own code another
        try:
            return original(self, *args, **kwargs)
        finally:
            self.scaling = self.scaling * 1.5 if changed else self.scaling

    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", eager_differs)
    with pytest.raises(ModelLoadError, match="differ from the model's own") as caught:
        load_model(model, EngineConfig(device="cpu"))
    assert caught.value.code == "unsupported_model"


def test_a_refused_model_still_works_for_its_owner(tiny_model: TinyModel) -> None:
    model = tiny_model("gpt_oss")
    before = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    with pytest.raises(ModelLoadError):
        load_model(model, EngineConfig(device="cpu"))
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, before)


def test_use_outside_the_engine_says_what_to_do(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    load_model(model, EngineConfig(device="cpu"))
    with pytest.raises(RuntimeError, match="set_attn_implementation"):
        model(input_ids=torch.tensor([[5, 6, 7]]))


def test_length_dependent_rope_ends_at_the_original_length(tiny_model: TinyModel) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    model = TransformersModel(tiny_model("llama", rope_parameters=rope), "llama", device=CPU)
    assert model.info.max_model_len == 64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_pass_the_self_check(dtype: str, tiny_model: TinyModel) -> None:
    for name in ("llama", "gemma2"):
        loaded = load_model(tiny_model(name), EngineConfig(device="cpu", dtype=dtype))
        assert loaded.model.info.dtype == getattr(torch, dtype)
