"""A step loop without threads: scheduler, ledger, cache and allocator as the engine wires them, checked after every step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from infer_engine.cache import RadixCache
from infer_engine.errors import InferEngineError
from infer_engine.memory.allocator import SlotAllocator
from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.sampler import SampledToken, Sampler
from infer_engine.request import FinishedEvent, SamplingParams, TokensEvent
from infer_engine.scheduler.intake import Intake
from infer_engine.scheduler.scheduler import Scheduler
from infer_engine.stats import StatsRecorder

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


class Stepper:
    def __init__(
        self,
        model: Any,
        *,
        num_slots: int = 256,
        max_batch_size: int = 8,
        prefill_budget: int = 64,
        max_model_len: int = 512,
        use_cache: bool = True,
        policy: Any = "dlpm",
    ) -> None:
        self.model = model
        self.now = 1000.0
        self.pool = KVPool(2, num_slots, 1, 2, torch.float32, torch.device("cpu"))
        self.cache, self.allocator = RadixCache(), SlotAllocator(num_slots)
        self.stats, self.sampler = StatsRecorder(), Sampler()
        self.scheduler = Scheduler(
            self.cache,
            self.allocator,
            max_batch_size=max_batch_size,
            max_sequence_tokens=min(max_model_len, num_slots),
            prefill_budget=prefill_budget,
            use_cache=use_cache,
            stats=self.stats,
            policy=policy,
            clock=lambda: self.now,
        )
        self.intake = Intake(model.info, None, self.sampler, max_model_len, num_slots, default_max_tokens=8)
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, FinishedEvent] = {}
        self._ids = itertools.count()

    def submit(
        self,
        prompt: list[int],
        params: SamplingParams = GREEDY,
        *,
        namespace: str = "",
        tenant: str = "",
        deadline: float | None = None,
    ) -> int:
        request_id = next(self._ids)
        self.tokens[request_id] = []
        sequence = self.intake.new_sequence(
            request_id,
            prompt,
            params,
            namespace=namespace,
            tenant=tenant,
            deadline=deadline,
            with_text=False,
            submitted_at=self.now,
            on_event=lambda event: self._on_event(request_id, event),
        )
        self.scheduler.add(sequence)
        return request_id

    def step(self) -> list[tuple[int, int]]:
        """One step; (request id, number of tokens) of each sequence in its batch. Checks all invariants afterwards."""
        self.now += 0.01
        batch = self.scheduler.schedule()
        works: list[tuple[int, int]] = []
        if batch is not None:
            works = [(work.sequence.request_id, work.num_tokens) for work in batch.works]
            try:
                logits = self.model.forward(batch.forward, self.pool)
            except RuntimeError as error:
                self.scheduler.abort(batch, error)
            else:
                self.scheduler.update(batch, self._sample(batch, logits))
        for sequence, event in self.scheduler.take_events():
            sequence.on_event(event)
        self.scheduler.check_integrity()
        return works

    def run(self) -> None:
        while self.scheduler.has_work:
            self.step()

    def generate(self, prompt: list[int], params: SamplingParams = GREEDY, **options: Any) -> list[int]:
        request_id = self.submit(prompt, params, **options)
        self.run()
        return self.tokens[request_id]

    def cached(self, request_id: int) -> int:
        return self.finished[request_id].usage.cached_tokens

    def _sample(self, batch: Any, logits: torch.Tensor) -> list[SampledToken | None]:
        sampled: list[SampledToken | None] = []
        for work, row in zip(batch.works, logits, strict=True):
            if work.samples:
                sampled += self.sampler.sample(row[None], [work.sequence.sampling])
            else:
                bad = SampledToken(-1, error=InferEngineError("not finite", code="non_finite_logits"))
                sampled.append(None if bool(torch.isfinite(row).all()) else bad)
        return sampled

    def _on_event(self, request_id: int, event: TokensEvent | FinishedEvent) -> None:
        assert request_id not in self.finished, "nothing follows the last event"
        if isinstance(event, TokensEvent):
            self.tokens[request_id] += event.token_ids
        else:
            self.finished[request_id] = event
            assert event.usage.output_tokens == len(self.tokens[request_id])


@pytest.fixture
def stepper(arithmetic: Any) -> Callable[..., Stepper]:
    def make(**options: Any) -> Stepper:
        return Stepper(arithmetic(), **options)

    return make


@pytest.fixture
def greedy() -> Callable[..., SamplingParams]:
    def make(max_tokens: int = 8, *, ignore_eos: bool = True, **fields: Any) -> SamplingParams:
        return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=ignore_eos, **fields)

    return make
