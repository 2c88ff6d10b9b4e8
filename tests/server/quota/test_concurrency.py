"""Many clients at once against one tenant: not one request or token is admitted over a limit."""

from __future__ import annotations

import asyncio
import os
import random
from math import ceil
from typing import Any

import pytest

from infer_server.quota import QuotaDenied, QuotaLimits, QuotaStore, Reservation, Use

SOAK = os.environ.get("INFERENGINE_TEST_PROFILE") == "soak"
CLIENTS = 5_000 if SOAK else 200
SEEDS = range(20) if SOAK else range(2)
REQUESTS_PER_WORKER = 100 if SOAK else 20
DAY_LIMIT = 20_000


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (QuotaLimits(max_concurrent_requests=37), 37),
        (QuotaLimits(tokens_per_day=20 * 53 + 19), 53),
        (QuotaLimits(tokens_per_month=20 * 53), 53),
    ],
)
async def test_a_crowd_gets_exactly_the_limit(
    clocked: QuotaStore, tenant: str, limits: QuotaLimits, expected: int
) -> None:
    await clocked.set_limits(tenant, limits)
    calls = (clocked.reserve(tenant, f"r{n}", prompt_tokens=10, max_tokens=10) for n in range(CLIENTS))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    usage = await clocked.usage(tenant)
    assert sum(isinstance(outcome, Reservation) for outcome in outcomes) == usage.live == expected
    assert sum(isinstance(outcome, QuotaDenied) for outcome in outcomes) == CLIENTS - expected
    assert usage.day.reserved == 20 * expected


async def test_a_crowd_gets_exactly_the_burst(clocked: QuotaStore, tenant: str) -> None:
    """On a clock that stands still, so that no refill blurs the count."""
    await clocked.set_limits(tenant, QuotaLimits(requests_per_minute=60, requests_burst=71, tokens_per_minute=10**6))
    calls = (clocked.reserve(tenant, f"r{n}", prompt_tokens=1, max_tokens=1) for n in range(CLIENTS))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, Reservation) for outcome in outcomes) == 71
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, QuotaDenied)} == {"requests_per_minute"}


class Traffic:
    """24 workers that admit, repeat, renew, crash and settle late; and, beside it, what must have been charged for each."""

    def __init__(self, store: QuotaStore, tenant: str, seed: int) -> None:
        self.store, self.tenant, self.seed = store, tenant, seed
        self.dice = random.Random(seed)
        self.charged: dict[str, int] = {}
        self.ended = False

    async def worker(self, name: int) -> None:
        for number in range(REQUESTS_PER_WORKER):
            await self.request(f"{self.seed}-{name}-{number}")

    async def request(self, request_id: str) -> None:
        dice, prompt, output = self.dice, self.dice.randint(5, 200), self.dice.randint(1, 300)
        try:
            for _ in range(dice.choice([1, 1, 2])):
                reservation = await self.store.reserve(self.tenant, request_id, prompt_tokens=prompt, max_tokens=output)
        except QuotaDenied:
            await asyncio.sleep(0.002)
            return
        cached = dice.randint(0, prompt)
        use = Use(prompt - cached, cached, dice.randint(0, output))
        swept_at = prompt
        fate = dice.random()
        if fate < 0.5:
            report = Use(prompt - cached, cached, use.output_tokens // 2)
            if request_id not in (await self.store.renew(self.tenant, {request_id: report})).lost:
                swept_at = price(report)
        if fate < 0.2:  # crash
            self.charged[request_id] = swept_at
            return
        if 0.4 < fate < 0.6:  # a settle that comes after the lease, perhaps after the sweep
            await asyncio.sleep(dice.random() * 0.5)
        self.charged[request_id] = await self.settle(reservation, use, swept_at)

    async def settle(self, reservation: Reservation, use: Use, swept_at: int) -> int:
        parts = {
            "computed_tokens": use.computed_tokens,
            "cached_tokens": use.cached_tokens,
            "output_tokens": use.output_tokens,
        }
        outcome = await reservation.settle(**parts)
        if outcome.charged_tokens != price(use):  # swept before: no refund, and more only as far as there was room
            assert swept_at <= outcome.charged_tokens
            assert outcome.charged_tokens + outcome.uncharged_tokens == max(swept_at, price(use))
        if self.dice.random() < 0.3:
            assert (await reservation.settle(**parts)).charged_tokens == outcome.charged_tokens
        return outcome.charged_tokens

    async def watch(self, clock: Any) -> int:
        """Looks at the tenant while time goes by, faster than it does."""
        samples = 0
        while not self.ended:
            usage = await self.store.usage(self.tenant)
            assert usage.day.used + usage.day.reserved <= DAY_LIMIT
            assert usage.day.reserved >= 0
            assert usage.live <= 16
            samples += 1
            clock.advance(200)
            await asyncio.sleep(0.001)
        return samples


def price(use: Use) -> int:
    return ceil(use.computed_tokens + use.cached_tokens / 4 + use.output_tokens)


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_traffic_never_overspends_and_leaves_nothing_behind(
    clocked: QuotaStore, clock: Any, tenant: str, seed: int
) -> None:
    await clocked.set_limits(
        tenant, QuotaLimits(tokens_per_day=DAY_LIMIT, max_concurrent_requests=16, cached_token_weight=0.25)
    )
    traffic = Traffic(clocked, tenant, seed)
    watcher = asyncio.create_task(traffic.watch(clock))
    await asyncio.gather(*(traffic.worker(n) for n in range(24)))
    traffic.ended = True
    assert await watcher > 0
    clock.advance(30_000)
    while await clocked.sweep(tenant):
        pass
    usage = await clocked.usage(tenant)
    assert (usage.live, usage.held, usage.day.reserved) == (0, 0, 0)
    assert usage.day.used == sum(traffic.charged.values()) <= DAY_LIMIT
    assert usage.day.used > 0
