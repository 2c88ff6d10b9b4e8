"""The example of a model of one's own runs as its readers would run it, and is served right under load."""

from __future__ import annotations

import importlib.util
import itertools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infer_engine import CacheAwareModel, EngineConfig, InferenceEngine, SamplingParams

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("own_model", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def induce(prompt: list[int], max_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        followers = [after for token, after in itertools.pairwise(tokens) if token == tokens[-1]]
        tokens.append(followers[-1] if followers else (tokens[-1] + 1) % 256)
    return tokens[len(prompt) :]


def test_the_example_runs() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True, timeout=120)
    first, second = done.stdout.splitlines()
    assert first == "'the cat sat on the mat; the c' -> 'athe cathe cathe cathe c', 0 tokens from the cache"
    assert second.endswith("31 tokens from the cache")


def test_a_model_of_ones_own_is_batched_chunked_and_cached(example: Any) -> None:
    model = example.InductionModel()
    assert isinstance(model, CacheAwareModel)
    rng = random.Random(3)
    shared = [rng.randrange(1, 30) for _ in range(100)]
    prompts = [
        shared[: rng.randint(1, 100)] + [rng.randrange(1, 30) for _ in range(rng.randint(1, 20))] for _ in range(32)
    ]
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    config = EngineConfig(max_cache_tokens=1024, max_batch_size=16, chunked_prefill_tokens=32)
    with InferenceEngine(model, config) as engine:
        for _ in range(2):
            outputs = engine.generate(prompts, params)
            assert [list(output.token_ids) for output in outputs] == [induce(prompt, 20) for prompt in prompts]
        engine.check_integrity()
        assert engine.engine_stats().cache_hits > 1000
