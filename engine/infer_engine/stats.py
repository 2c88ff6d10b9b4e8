"""What the engine counts: every operation, in one place.

In: the step loop's and the callers' reports. Out: frozen `EngineStats` and `TenantCacheUsage`, from any thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from infer_engine.cache.shares import EvictionCause
from infer_engine.request import FinishReason

WINDOW = 4096
"""Percentiles are over this many latest samples: bounded memory, and recent."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start, gauges of the last step. Times of a mixed step go to prefill and decode by their tokens."""

    total_requests: int
    """accepted; = completed + failed + cancelled + running + waiting"""
    completed_requests: int
    """finished with stop or length"""
    failed_requests: int
    """ended by an error or by their deadline"""
    cancelled_requests: int
    rejected_requests: int
    """refused at submit: invalid, or the queue was full"""
    preemptions: int
    cache_hits: int
    """prompt tokens read from the prefix cache; a recomputation after a preemption is not counted"""
    cache_misses: int
    hit_rate: float
    """cache_hits over looked-up prompt tokens; 0 without look-ups"""
    avg_queue_time_ms: float
    """from submit to first admission"""
    prefill_time_s: float
    prefill_tokens: int
    decode_time_s: float
    decode_tokens: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    pool_tokens: int
    pool_used_tokens: int
    """slots that hold cached or running tokens"""
    cached_tokens: int
    """tokens in the prefix cache, those of running requests included"""
    evicted_tokens: int
    running_requests: int
    waiting_requests: int
    steps: int


@dataclass(frozen=True, slots=True)
class TenantCacheUsage:
    """Cumulative, but for kv_tokens: slots that hold the tenant's cached and running tokens now."""

    lookup_tokens: int
    hit_tokens: int
    kv_tokens: int
    evicted_tokens: int
    """for whatever cause, but for the dropping of a namespace"""
    evicted_by_cause: dict[EvictionCause, int]
    cross_evicted_tokens: int
    """taken by others from what the tenant is guaranteed: 0, or there is a defect"""


@dataclass(frozen=True, slots=True)
class Gauges:
    """What the scheduler sees after a step."""

    pool_tokens: int = 0
    pool_used_tokens: int = 0
    cached_tokens: int = 0
    evicted_tokens: int = 0
    running_requests: int = 0
    waiting_requests: int = 0


class LatencyWindow:
    """The latest `WINDOW` samples, in seconds."""

    def __init__(self) -> None:
        self._samples = np.zeros(WINDOW, dtype=np.float64)
        self._count = 0

    def add(self, seconds: float) -> None:
        self._samples[self._count % WINDOW] = seconds
        self._count += 1

    def percentiles_ms(self, *ranks: float) -> list[float]:
        if self._count == 0:
            return [0.0 for _ in ranks]
        return [float(value) * 1e3 for value in np.percentile(self._samples[: min(self._count, WINDOW)], ranks)]


class StatsRecorder:
    """Written by the step loop and by callers, read by anyone; each method holds the mutex briefly."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._requests = {"total": 0, "completed": 0, "failed": 0, "cancelled": 0, "rejected": 0}
        self._preemptions = 0
        self._hits = self._misses = 0
        self._queue_s = 0.0
        self._admitted = 0
        self._prefill_s = self._decode_s = 0.0
        self._prefill_tokens = self._decode_tokens = 0
        self._ttft, self._itl = LatencyWindow(), LatencyWindow()
        self._steps = 0
        self._gauges = Gauges()

    def record_accepted(self) -> None:
        with self._mutex:
            self._requests["total"] += 1

    def record_rejected(self) -> None:
        with self._mutex:
            self._requests["rejected"] += 1

    def record_admitted(self, queue_s: float) -> None:
        with self._mutex:
            self._admitted += 1
            self._queue_s += queue_s

    def record_lookup(self, num_hits: int, num_misses: int) -> None:
        with self._mutex:
            self._hits += num_hits
            self._misses += num_misses

    def record_preemption(self) -> None:
        with self._mutex:
            self._preemptions += 1

    def record_tokens(self, ttft_s: list[float], itl_s: list[float]) -> None:
        """One step's latencies: of requests that got their first token, and of those that got another."""
        with self._mutex:
            for seconds in ttft_s:
                self._ttft.add(seconds)
            for seconds in itl_s:
                self._itl.add(seconds)

    def record_step(self, seconds: float, num_prefill_tokens: int, num_decode_tokens: int) -> None:
        prefill_share = num_prefill_tokens / (num_prefill_tokens + num_decode_tokens)
        with self._mutex:
            self._steps += 1
            self._prefill_tokens += num_prefill_tokens
            self._decode_tokens += num_decode_tokens
            self._prefill_s += seconds * prefill_share
            self._decode_s += seconds * (1 - prefill_share)

    def record_finished(self, reason: FinishReason) -> None:
        outcome = {"stop": "completed", "length": "completed", "cancelled": "cancelled"}.get(reason, "failed")
        with self._mutex:
            self._requests[outcome] += 1

    def set_gauges(self, gauges: Gauges) -> None:
        with self._mutex:
            self._gauges = gauges

    def snapshot(self) -> EngineStats:
        with self._mutex:
            ttft_p50, ttft_p99 = self._ttft.percentiles_ms(50, 99)
            itl_p50, itl_p99 = self._itl.percentiles_ms(50, 99)
            looked_up = self._hits + self._misses
            return EngineStats(
                total_requests=self._requests["total"],
                completed_requests=self._requests["completed"],
                failed_requests=self._requests["failed"],
                cancelled_requests=self._requests["cancelled"],
                rejected_requests=self._requests["rejected"],
                preemptions=self._preemptions,
                cache_hits=self._hits,
                cache_misses=self._misses,
                hit_rate=self._hits / looked_up if looked_up else 0.0,
                avg_queue_time_ms=self._queue_s / self._admitted * 1e3 if self._admitted else 0.0,
                prefill_time_s=self._prefill_s,
                prefill_tokens=self._prefill_tokens,
                decode_time_s=self._decode_s,
                decode_tokens=self._decode_tokens,
                ttft_p50_ms=ttft_p50,
                ttft_p99_ms=ttft_p99,
                itl_p50_ms=itl_p50,
                itl_p99_ms=itl_p99,
                pool_tokens=self._gauges.pool_tokens,
                pool_used_tokens=self._gauges.pool_used_tokens,
                cached_tokens=self._gauges.cached_tokens,
                evicted_tokens=self._gauges.evicted_tokens,
                running_requests=self._gauges.running_requests,
                waiting_requests=self._gauges.waiting_requests,
                steps=self._steps,
            )
