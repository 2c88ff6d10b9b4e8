"""64 threads at once on one engine: generate, stream, cancel, asyncio, counters, dropped namespaces. Nothing is lost."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

from infer_engine import (
    EngineConfig,
    Event,
    FinishedEvent,
    InferenceEngine,
    QueueFullError,
    SamplingParams,
    TokensEvent,
)

Make = Callable[..., Any]
NUM_THREADS = 64
NUM_CALLS = 12
NUM_CALLS_SOAK = 400


class Caller:
    """One thread's work. `num_accepted` counts what the engine must have counted."""

    def __init__(self, engine: InferenceEngine, continuation: Make, seed: int) -> None:
        self.engine = engine
        self.continuation = continuation
        self.rng = random.Random(seed)
        self.tenant = f"tenant-{seed % 5}"
        self.num_accepted = 0
        self.error: BaseException | None = None

    def run(self, num_calls: int) -> None:
        verbs = (self.generate, self.stream, self.stream_and_leave, self.submit_and_cancel, self.in_asyncio, self.look)
        try:
            for _ in range(num_calls):
                self.rng.choice(verbs)()
        except BaseException as error:
            self.error = error

    def prompt(self) -> list[int]:
        shared = random.Random(self.tenant).choices(range(95), k=30)
        return shared[: self.rng.randint(1, 30)] + self.rng.choices(range(95), k=self.rng.randint(1, 8))

    def params(self) -> SamplingParams:
        return SamplingParams(max_tokens=self.rng.randint(1, 16), temperature=0.0, ignore_eos=True)

    def check(self, prompt: list[int], params: SamplingParams, token_ids: list[int], *, is_whole: bool = True) -> None:
        expected = self.continuation(prompt, params.max_tokens, ignore_eos=True)
        assert token_ids == (expected if is_whole else expected[: len(token_ids)])

    def generate(self) -> None:
        prompts = [self.prompt() for _ in range(self.rng.randint(1, 3))]
        params = self.params()
        self.num_accepted += len(prompts)
        outputs = self.engine.generate(prompts, params, namespace=self.tenant, tenant=self.tenant)
        for prompt, output in zip(prompts, outputs, strict=True):
            self.check(prompt, params, list(output.token_ids))

    def stream(self) -> None:
        prompt, params = self.prompt(), self.params()
        self.num_accepted += 1
        *tokens, last = self.engine.stream(prompt, params, namespace=self.tenant, tenant=self.tenant)
        assert isinstance(last, FinishedEvent)
        self.check(prompt, params, [token for event in tokens for token in event.token_ids])  # type: ignore[union-attr]

    def stream_and_leave(self) -> None:
        self.num_accepted += 1
        stream = self.engine.stream(self.prompt(), self.params(), namespace=self.tenant, tenant=self.tenant)
        next(stream)
        stream.close()  # type: ignore[attr-defined]

    def submit_and_cancel(self) -> None:
        prompt, params = self.prompt(), self.params()
        tokens: list[int] = []
        ended = threading.Event()

        def on_event(event: Event) -> None:
            if isinstance(event, TokensEvent):
                tokens.extend(event.token_ids)
            else:
                ended.set()

        try:
            request_id = self.engine.submit(
                prompt, params, namespace=self.tenant, tenant=self.tenant, on_event=on_event
            )
        except QueueFullError:
            return
        self.num_accepted += 1
        self.engine.cancel(request_id)
        assert ended.wait(60)
        self.check(prompt, params, tokens, is_whole=False)

    def in_asyncio(self) -> None:
        async def both() -> None:
            prompt, params = self.prompt(), self.params()
            outputs = await self.engine.agenerate([prompt], params, namespace=self.tenant, tenant=self.tenant)
            self.check(prompt, params, list(outputs[0].token_ids))
            await self.engine.aengine_stats()

        self.num_accepted += 1
        asyncio.run(both())

    def look(self) -> None:
        stats = self.engine.engine_stats()
        assert stats.completed_requests + stats.failed_requests + stats.cancelled_requests <= stats.total_requests
        assert all(usage.kv_tokens >= 0 for usage in self.engine.cache_usage_by_tenant().values())
        if self.rng.random() < 0.2:
            self.engine.drop_namespace(self.tenant)
        self.engine.check_integrity()


def test_64_threads_at_once(arithmetic: Make, continuation: Make, is_soak: bool) -> None:
    config = EngineConfig(
        max_cache_tokens=400, max_batch_size=8, max_queue_size=24, max_concurrent_requests=16, chunked_prefill_tokens=32
    )
    with InferenceEngine(arithmetic(), config) as engine:
        callers = [Caller(engine, continuation, seed) for seed in range(NUM_THREADS)]
        num_calls = NUM_CALLS_SOAK if is_soak else NUM_CALLS
        threads = [threading.Thread(target=caller.run, args=(num_calls,)) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [caller.error for caller in callers if caller.error is not None] == []
        engine.close(drain=True)
        stats = engine.engine_stats()
    assert stats.total_requests == sum(caller.num_accepted for caller in callers)
    assert stats.completed_requests + stats.cancelled_requests == stats.total_requests
    assert (stats.failed_requests, stats.running_requests, stats.waiting_requests) == (0, 0, 0)
    assert stats.pool_used_tokens == stats.cached_tokens
