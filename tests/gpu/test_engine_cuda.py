"""The same torch path on an accelerator: the engine's greedy tokens equal those of `transformers` on the same device."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from infer_engine import EngineConfig, InferenceEngine, SamplingParams

pytestmark = pytest.mark.gpu
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config).to("cuda", torch.float32).eval()


def reference(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt], device="cuda")
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    return [int(token) for token in out[0, len(prompt) :]]


def test_greedy_equals_transformers_cold_cached_and_chunked(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(1, 512, (150,), generator=generator).tolist()
    prompts = [shared + torch.randint(1, 512, (n,), generator=generator).tolist() for n in range(1, 17)]
    expected = [reference(model, prompt) for prompt in prompts]
    config = EngineConfig(device="cuda", dtype="float32", max_cache_tokens=8192, chunked_prefill_tokens=64)
    with InferenceEngine(model, config) as engine:
        cold = engine.generate(prompts, GREEDY)
        warm = engine.generate(prompts, GREEDY)
    assert [list(out.token_ids) for out in cold] == expected
    assert [list(out.token_ids) for out in warm] == expected
    assert all(out.usage.cached_tokens >= len(shared) for out in warm)


def test_a_namespace_shares_nothing_on_the_device(model: PreTrainedModel) -> None:
    prompt = list(range(1, 101))
    with InferenceEngine(model, EngineConfig(device="cuda", dtype="float32", max_cache_tokens=4096)) as engine:
        first, second = (engine.generate(prompt, GREEDY, namespace=name)[0] for name in ("one", "two"))
    assert first.token_ids == second.token_ids
    assert second.usage.cached_tokens == 0
