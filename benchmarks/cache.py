"""How long the prefix cache's verbs take: `python benchmarks/cache.py [--json FILE]`. Needs no model.

In: nothing. Out: a table and, with --json, the same figures in microseconds. Each is the median over RUNS runs of that run's p50
or p99. As in the engine's process, `gc.freeze()` takes what a run starts with out of the garbage collector's way.

By number of leaves of 64 tokens in the tree:
    match   one of them, whole, without a lock          insert  a new one
    lock    a handle of one, and unlock it again        evict   the oldest one, whole
    trim    half of the oldest one, so that it is split
By length of the prompt, beside 50,000 leaves: match, whole, without a lock.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tabulate import tabulate

from infer_engine.cache import Handle, RadixCache, RadixKey

RUNS = 5
NUM_CALLS = 1_000
LEAF_TOKENS = 64
NUM_LEAVES = (1_000, 50_000)
PROMPT_TOKENS = (256, 2_048, 8_192, 32_768)
MAX_PROMPT = max(PROMPT_TOKENS)

Prompt = tuple[RadixKey, "array[int]"]
Percentiles = tuple[float, float]


def make_prompts(count: int, num_tokens: int, first: int) -> list[Prompt]:
    """Random tokens after a first one that no other prompt has, so that each prompt is one leaf; slots of their own."""
    rng = random.Random(first)
    vocabulary = range(50_000)
    prompts = []
    for number in range(first, first + count):
        slots = array("i", range(number * MAX_PROMPT, number * MAX_PROMPT + num_tokens))
        prompts.append((RadixKey([number, *rng.choices(vocabulary, k=num_tokens - 1)]), slots))
    return prompts


def measure(call: Callable[..., object], arguments: Iterable[tuple[object, ...]]) -> Percentiles:
    """p50 and p99 in microseconds, with the clock's own time of some 50 ns."""
    clock = time.perf_counter_ns
    times = []
    for given in arguments:
        start = clock()
        call(*given)
        times.append(clock() - start)
    quantiles = statistics.quantiles(times, n=100)
    return quantiles[49] / 1000, quantiles[98] / 1000


def measure_verbs(leaves: list[Prompt], new_leaves: list[Prompt]) -> dict[str, Percentiles]:
    """One run of every verb on a fresh tree of `leaves`."""
    cache = fill(leaves)
    chosen = random.Random(0).choices([key for key, _ in leaves], k=NUM_CALLS)
    handles = [cache.match_prefix(key).handle for key in chosen]

    def lock_and_unlock(handle: Handle) -> None:
        cache.lock(handle)
        cache.unlock(handle)

    def halves() -> Iterator[tuple[int]]:
        for _ in range(NUM_CALLS // 2):
            yield (LEAF_TOKENS // 2,)
            cache.evict(LEAF_TOKENS // 2)  # the other half, so that each measured call finds a whole leaf

    freeze_heap()
    return {
        "match": measure(cache.match_prefix, ((key,) for key in chosen)),
        "lock": measure(lock_and_unlock, ((handle,) for handle in handles)),
        "insert": measure(cache.insert, new_leaves),
        "evict": measure(cache.evict, [(LEAF_TOKENS,)] * NUM_CALLS),
        "trim": measure(cache.evict, halves()),
    }


def measure_lengths(leaves: list[Prompt]) -> dict[str, Percentiles]:
    """One run of matching prompts of each length."""
    prompts = {length: make_prompts(1, length, len(leaves) + number)[0] for number, length in enumerate(PROMPT_TOKENS)}
    cache = fill([*leaves, *prompts.values()])
    freeze_heap()
    return {str(length): measure(cache.match_prefix, [(key,)] * NUM_CALLS) for length, (key, _) in prompts.items()}


def fill(prompts: Iterable[Prompt]) -> RadixCache:
    cache = RadixCache()
    for prompt in prompts:
        cache.insert(*prompt)
    return cache


def freeze_heap() -> None:
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def median_of(runs: list[dict[str, Percentiles]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            percentile: round(statistics.median(run[name][idx] for run in runs), 2)
            for idx, percentile in enumerate(("p50", "p99"))
        }
        for name in runs[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    figures = {}
    leaves = []
    for num_leaves in NUM_LEAVES:
        leaves = make_prompts(num_leaves, LEAF_TOKENS, 0)
        new_leaves = make_prompts(NUM_CALLS, LEAF_TOKENS, num_leaves)
        figures[f"{num_leaves} leaves"] = median_of([measure_verbs(leaves, new_leaves) for _ in range(RUNS)])
    figures["match by prompt tokens"] = median_of([measure_lengths(leaves) for _ in range(RUNS)])
    rows = [
        (where, what, values["p50"], values["p99"])
        for where, group in figures.items()
        for what, values in group.items()
    ]
    print(tabulate(rows, headers=("", "", "p50 us", "p99 us"), floatfmt=".2f"))
    if args.json:
        args.json.write_text(json.dumps({"unit": "us", "runs": RUNS, "median": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
