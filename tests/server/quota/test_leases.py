"""What becomes of reservations whose holder is gone: expiry, hold, sweep, late settle. Leases last 10 s, the hold 20 s."""

from __future__ import annotations

import asyncio

import pytest

from infer_server.quota import EmbeddedStore, QuotaDenied, QuotaLimits, QuotaStore, Use


async def test_an_expired_lease_frees_concurrency_and_holds_its_tokens(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(max_concurrent_requests=1, tokens_per_day=100))
    await clocked.reserve(tenant, "lost", prompt_tokens=30, max_tokens=30)
    clock.advance(9_999)
    with pytest.raises(QuotaDenied, match="concurrent"):
        await clocked.reserve(tenant, "next", prompt_tokens=10, max_tokens=10)
    clock.advance(1)
    await clocked.reserve(tenant, "next", prompt_tokens=10, max_tokens=10)
    usage = await clocked.usage(tenant)
    assert (usage.live, usage.held, usage.day.reserved) == (1, 1, 80)
    clock.advance(10_000)
    with pytest.raises(QuotaDenied) as caught:
        await clocked.reserve(tenant, "big", prompt_tokens=30, max_tokens=0)
    assert caught.value.reason == "tokens_per_day"


async def test_the_sweep_charges_the_prompt_before_any_report(clocked: QuotaStore, clock, tenant: str, audit) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_minute=1_000))
    await clocked.reserve(tenant, "lost", prompt_tokens=30, max_tokens=70)
    clock.advance(29_999)
    assert await clocked.sweep(tenant) == 0
    clock.advance(1)
    assert await clocked.sweep(tenant) == 1
    usage = await clocked.usage(tenant)
    assert (usage.live, usage.held, usage.day.used, usage.day.reserved) == (0, 0, 30, 0)
    assert [(e["event"], e["charged"]) for e in await audit()] == [("swept", "30")]


async def test_the_sweep_charges_the_last_report(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(cached_token_weight=0.5))
    await clocked.reserve(tenant, "lost", prompt_tokens=100, max_tokens=100)
    await clocked.renew(tenant, {"lost": Use(computed_tokens=20, cached_tokens=80, output_tokens=7)})
    await clocked.renew(
        tenant, {"lost": Use(computed_tokens=20, cached_tokens=80, output_tokens=5)}
    )  # an older one, late
    clock.advance(30_000)
    assert await clocked.sweep(tenant) == 1
    assert (await clocked.usage(tenant)).day.used == 20 + 40 + 7


async def test_reserve_sweeps_on_its_way(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_day=100))
    await clocked.reserve(tenant, "lost", prompt_tokens=10, max_tokens=90)
    clock.advance(30_000)
    await clocked.reserve(tenant, "next", prompt_tokens=45, max_tokens=45)
    usage = await clocked.usage(tenant)
    assert (usage.day.used, usage.day.reserved) == (10, 90)


async def test_renew_prolongs_in_batches_and_names_the_lost(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits())
    names = [f"r{n}" for n in range(1_200)]  # more than one call takes
    await asyncio.gather(*(clocked.reserve(tenant, name, prompt_tokens=1, max_tokens=1) for name in names))
    await clocked.settle(tenant, "r7", Use(1, 0, 1))
    clock.advance(6_000)
    renewal = await clocked.renew(tenant, {name: Use(1, 0, 0) for name in [*names, "stranger"]})
    assert renewal.lost == {"r7", "stranger"}
    clock.advance(6_000)
    assert (await clocked.usage(tenant)).live == 1_199
    clock.advance(4_000)
    assert (await clocked.renew(tenant, {"r1": Use()})).lost == {"r1"}  # expired: its place may be another's


async def test_a_settle_between_expiry_and_sweep_is_an_ordinary_one(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_day=100))
    reservation = await clocked.reserve(tenant, "slow", prompt_tokens=30, max_tokens=70)
    clock.advance(25_000)
    settlement = await reservation.settle(computed_tokens=30, cached_tokens=0, output_tokens=60)
    assert (settlement.charged_tokens, settlement.uncharged_tokens) == (90, 0)
    usage = await clocked.usage(tenant)
    assert (usage.held, usage.day.used, usage.day.reserved) == (0, 90, 0)


async def test_a_settle_after_the_sweep_charges_what_still_fits(clocked: QuotaStore, clock, tenant: str, audit) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_day=100, tokens_per_minute=1_000))
    late = await clocked.reserve(tenant, "late", prompt_tokens=10, max_tokens=60)
    clock.advance(30_000)
    await clocked.reserve(tenant, "next", prompt_tokens=50, max_tokens=20)  # sweeps, then takes 70 of the 90 left
    settlement = await late.settle(computed_tokens=10, cached_tokens=0, output_tokens=45)
    assert (settlement.charged_tokens, settlement.uncharged_tokens) == (30, 25)  # 10 swept, 20 there was room for
    usage = await clocked.usage(tenant)
    assert usage.day.used + usage.day.reserved == 100
    assert [(e["event"], e["charged"], e["uncharged"]) for e in await audit()] == [
        ("swept", "10", "0"),
        ("late", "20", "25"),
    ]
    again = await late.settle(computed_tokens=10, cached_tokens=0, output_tokens=45)
    assert again.charged_tokens == 30


async def test_a_settle_after_the_sweep_does_not_drain_the_minute_below_zero(
    clocked: QuotaStore, clock, tenant: str
) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_minute=60, tokens_burst=100))
    late = await clocked.reserve(tenant, "late", prompt_tokens=1, max_tokens=99)
    clock.advance(30_000)
    await clocked.sweep(tenant)
    await clocked.reserve(tenant, "next", prompt_tokens=100, max_tokens=0)
    assert (await late.settle(computed_tokens=1, cached_tokens=0, output_tokens=50)).charged_tokens == 51
    usage = await clocked.usage(tenant)
    assert usage.tokens is not None
    assert usage.tokens.left == 0
    clock.advance(1_000)
    await clocked.reserve(tenant, "soon", prompt_tokens=1, max_tokens=0)


async def test_a_settle_after_the_sweep_gives_nothing_back(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits())
    late = await clocked.reserve(tenant, "late", prompt_tokens=10, max_tokens=10)
    clock.advance(30_000)
    await clocked.sweep(tenant)
    assert (await late.settle(computed_tokens=1, cached_tokens=0, output_tokens=0)).charged_tokens == 10


async def test_the_crash_of_a_client_frees_its_place(valkey: EmbeddedStore, tenant: str) -> None:
    """On the real clock: a client that went away without a word, a lease of 50 ms, a hold of 50 ms."""
    options = {"timeout_seconds": 5.0, "lease_seconds": 0.05, "hold_seconds": 0.05}
    async with QuotaStore.open(valkey.url, **options) as crashed:
        await crashed.set_limits(tenant, QuotaLimits(max_concurrent_requests=1, tokens_per_day=100))
        await crashed.reserve(tenant, "lost", prompt_tokens=20, max_tokens=80)
    async with QuotaStore.open(valkey.url, **options) as store, asyncio.timeout(10):
        while (await store.usage(tenant)).live:
            pass  # each look is a call to the store
        while not await store.sweep(tenant):
            pass
        await store.reserve(tenant, "next", prompt_tokens=40, max_tokens=40)
        usage = await store.usage(tenant)
        assert (usage.day.used, usage.day.reserved) == (20, 80)
