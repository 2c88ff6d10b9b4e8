"""Four tenants that always have work, of very different kinds: how far apart does their service drift?

The scheduler, ledger and cache are the real ones; tokens come from nowhere, since what they are decides nothing. Service is
counted here from what was computed, step by step, not from the policy's own books.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infer_engine.config import Share
from infer_engine.model.sampler import SampledToken
from infer_engine.request import SamplingParams
from infer_engine.scheduler.fairness import OUTPUT_COST, PROMPT_COST, QUANTUM

TENANTS = ("chats", "documents", "templates", "short")
NUM_STEPS = 3_000
NUM_STEPS_SOAK = 20_000
MAX_BATCH_SIZE = 16
NUM_SLOTS = 8_000
LONGEST_PROMPT = 600
MOST_AT_ONCE = max(PROMPT_COST * LONGEST_PROMPT, OUTPUT_COST * NUM_SLOTS)
"""U of the bound: what one tenant's running requests may cost beyond what it had when they were admitted."""


def prompts(tenant: str, rng: random.Random) -> Iterator[tuple[list[int], int]]:
    """Prompt and number of output tokens, without end."""
    shared = {name: [rng.randrange(95) for _ in range(500)] for name in ("system", *"abcdef")}

    def own(low: int, high: int) -> list[int]:
        return [rng.randrange(95) for _ in range(rng.randint(low, high))]

    while True:
        if tenant == "chats":
            yield [*shared["system"], *own(10, 50)], rng.randint(8, 64)
        elif tenant == "documents":
            yield own(500, LONGEST_PROMPT), rng.randint(4, 16)
        elif tenant == "templates":
            yield [*shared[rng.choice("abcdef")][:300], *own(10, 100)], rng.randint(8, 64)
        else:
            yield own(10, 60), rng.randint(4, 12)


class Contest:
    """`served[i]`: each tenant's service, divided by its weight, after step i."""

    def __init__(self, make: Callable[..., Any], policy: str, weights: dict[str, float], num_steps: int) -> None:
        self._loop = make(
            num_slots=NUM_SLOTS, max_batch_size=MAX_BATCH_SIZE, prefill_budget=256, max_model_len=1024, policy=policy
        )
        self._weights = weights
        for tenant, weight in weights.items():
            self._loop.scheduler.set_share(tenant, Share(weight=weight))
        self._work = {tenant: prompts(tenant, random.Random(number)) for number, tenant in enumerate(TENANTS)}
        self.served = [dict.fromkeys(TENANTS, 0.0)]
        for tenant in TENANTS:
            for _ in range(MAX_BATCH_SIZE + 4):
                self._submit(tenant)
        for _ in range(num_steps):
            self._step()
        self._loop.scheduler.check_integrity()

    def _submit(self, tenant: str) -> None:
        prompt, num_output = next(self._work[tenant])
        self._loop.submit(
            prompt,
            SamplingParams(max_tokens=num_output, temperature=0.0, ignore_eos=True),
            namespace=tenant,
            tenant=tenant,
        )

    def _step(self) -> None:
        scheduler = self._loop.scheduler
        batch = scheduler.schedule()
        served = dict(self.served[-1])
        for work in batch.works:
            sequence = work.sequence
            end = min(sequence.num_computed + work.num_tokens, sequence.num_prompt_tokens)
            computed = max(0, end - max(sequence.num_computed, sequence.num_prompt_done))
            cost = PROMPT_COST * computed + OUTPUT_COST * work.samples
            served[sequence.tenant] += cost / self._weights.get(sequence.tenant, 1.0)
        self.served.append(served)
        scheduler.update(batch, [SampledToken(1) if work.samples else None for work in batch.works])
        for sequence, event in scheduler.take_events():
            sequence.on_event(event)
            if sequence.request_id in self._loop.finished:
                self._submit(sequence.tenant)

    @property
    def jain(self) -> float:
        """1 where all have had the same (Jain, Chiu, Hawe 1984)."""
        shares = list(self.served[-1].values())
        return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))

    @property
    def worst_gap(self) -> float:
        """The most that one tenant was served more than another in any window of steps."""
        worst = 0.0
        for first, second in itertools.combinations(TENANTS, 2):
            ahead = [served[first] - served[second] for served in self.served]
            for sign in (1, -1):
                lowest = 0.0
                for value in ahead:
                    lowest = min(lowest, sign * value)
                    worst = max(worst, sign * value - lowest)
        return worst

    @property
    def hit_rate(self) -> float:
        stats = self._loop.stats.snapshot()
        return float(stats.hit_rate)


@pytest.fixture
def contest(stepper: Callable[..., Any], is_soak: bool) -> Callable[..., Contest]:
    def run(policy: str, weights: dict[str, float] | None = None) -> Contest:
        return Contest(stepper, policy, weights or {}, NUM_STEPS_SOAK if is_soak else NUM_STEPS)

    return run


def is_fair(result: Contest) -> bool:
    return result.jain >= 0.99 and result.worst_gap <= 2 * (MOST_AT_ONCE + QUANTUM)


@pytest.mark.parametrize("policy", ["dlpm", "vtc"])
def test_tenants_with_work_are_served_alike(contest: Callable[..., Contest], policy: str) -> None:
    result = contest(policy)
    print(policy, result.jain, result.worst_gap, result.hit_rate)
    assert is_fair(result)


@pytest.mark.parametrize("policy", ["lpm", "fcfs"])
def test_the_same_demand_fails_where_tenants_mean_nothing(contest: Callable[..., Contest], policy: str) -> None:
    result = contest(policy)
    print(policy, result.jain, result.worst_gap, result.hit_rate)
    assert not is_fair(result)


def test_weights_are_kept_to(contest: Callable[..., Contest]) -> None:
    result = contest("dlpm", {"chats": 4.0, "documents": 2.0, "templates": 1.0, "short": 1.0})
    served = result.served[-1]
    mean = sum(served.values()) / len(served)
    print(served)
    assert all(abs(share - mean) <= 0.02 * mean for share in served.values())
