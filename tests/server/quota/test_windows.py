"""Calendar windows: days and months of UTC, and reservations that outlive them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from infer_server.quota import QuotaDenied, QuotaLimits, QuotaStore


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def next_month(moment: datetime) -> datetime:
    return datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)


def moments() -> list[datetime]:
    dice = random.Random(8)
    corners = [
        "2028-02-28T23:59:59.999",
        "2028-02-29T12:00",
        "2100-02-28T23:59",
        "2400-02-29T00:00",
        "2026-12-31T23:59:59.999",
    ]
    starts = [datetime(year, month, 1, tzinfo=UTC) for year in (2026, 2027, 2028) for month in range(1, 13)]
    wild = [
        datetime(2025, 1, 1, tzinfo=UTC) + timedelta(milliseconds=dice.randrange(100 * 365 * 86_400_000))
        for _ in range(100)
    ]
    return [at(text) for text in corners] + starts + [s - timedelta(milliseconds=1) for s in starts] + wild


async def test_the_calendar_is_that_of_datetime(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits())
    for moment in moments():
        clock.set(moment)
        usage = await clocked.usage(tenant)
        midnight = datetime(moment.year, moment.month, moment.day, tzinfo=UTC) + timedelta(days=1)
        assert usage.day.name == f"{moment:%Y%m%d}"
        assert usage.month.name == f"{moment:%Y%m}"
        assert usage.day.resets_ms == int(midnight.timestamp() * 1000) - clock.now
        assert usage.month.resets_ms == int(next_month(moment).timestamp() * 1000) - clock.now


async def test_a_new_day_is_a_new_budget(clocked: QuotaStore, clock, tenant: str) -> None:
    clock.set(at("2026-03-10T23:59:50"))
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_day=100))
    first = await clocked.reserve(tenant, "a", prompt_tokens=100, max_tokens=0)
    await first.settle(computed_tokens=100, cached_tokens=0, output_tokens=0)
    with pytest.raises(QuotaDenied) as caught:
        await clocked.reserve(tenant, "b", prompt_tokens=1, max_tokens=0)
    assert caught.value.retry_ms == 10_000
    clock.advance(10_000)
    await clocked.reserve(tenant, "b", prompt_tokens=100, max_tokens=0)
    usage = await clocked.usage(tenant)
    assert (usage.day.used, usage.day.reserved, usage.month.used, usage.month.reserved) == (0, 100, 100, 100)


async def test_a_new_month_is_a_new_budget(clocked: QuotaStore, clock, tenant: str) -> None:
    clock.set(at("2028-02-29T23:00:00"))
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_month=100))
    first = await clocked.reserve(tenant, "a", prompt_tokens=100, max_tokens=0)
    await first.settle(computed_tokens=100, cached_tokens=0, output_tokens=0)
    with pytest.raises(QuotaDenied) as caught:
        await clocked.reserve(tenant, "b", prompt_tokens=1, max_tokens=0)
    assert (caught.value.reason, caught.value.retry_ms) == ("tokens_per_month", 3_600_000)
    clock.advance(3_600_000)
    await clocked.reserve(tenant, "b", prompt_tokens=1, max_tokens=0)


async def test_a_request_over_midnight_is_charged_to_the_day_it_began(clocked: QuotaStore, clock, tenant: str) -> None:
    clock.set(at("2026-03-31T23:59:59"))
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_day=100, tokens_per_month=1_000))
    late = await clocked.reserve(tenant, "a", prompt_tokens=40, max_tokens=40)
    clock.advance(2_000)
    await clocked.reserve(tenant, "b", prompt_tokens=50, max_tokens=50)  # April's first day is whole
    settlement = await late.settle(computed_tokens=40, cached_tokens=0, output_tokens=10)
    assert settlement.charged_tokens == 50
    usage = await clocked.usage(tenant)
    assert (usage.day.used, usage.day.reserved, usage.month.used) == (0, 100, 0)


async def test_past_windows_are_forgotten_when_nothing_is_reserved_in_them(
    clocked: QuotaStore, clock, tenant: str
) -> None:
    clock.set(at("2026-03-30T12:00:00"))
    await clocked.set_limits(tenant, QuotaLimits())
    for day in range(40):
        reservation = await clocked.reserve(tenant, str(day), prompt_tokens=1, max_tokens=0)
        await reservation.settle(computed_tokens=1, cached_tokens=0, output_tokens=0)
        clock.advance(86_400_000)
    state = await clocked._connection.client.hgetall(f"inferengine:{{{tenant}}}:state")
    assert sorted(name for name in state if ":" in name) == [
        "reserved:202605",
        "reserved:20260508",
        "used:202605",
        "used:20260508",
    ]


async def test_a_past_window_stays_while_something_is_reserved_in_it(clocked: QuotaStore, clock, tenant: str) -> None:
    clock.set(at("2026-03-10T23:59:59"))
    await clocked.set_limits(tenant, QuotaLimits())
    late = await clocked.reserve(tenant, "a", prompt_tokens=10, max_tokens=10)
    clock.advance(1_000)
    await clocked.reserve(tenant, "b", prompt_tokens=1, max_tokens=0)
    await late.settle(computed_tokens=10, cached_tokens=0, output_tokens=5)
    client, key = clocked._connection.client, f"inferengine:{{{tenant}}}:state"
    assert await client.hmget(key, "used:20260310", "reserved:20260310") == ["15", "0"]
    clock.advance(86_400_000)
    await clocked.reserve(tenant, "c", prompt_tokens=1, max_tokens=0)
    assert not await client.hexists(key, "used:20260310")


async def test_a_settle_long_after_the_sweep_does_not_revive_a_forgotten_day(
    clocked: QuotaStore, clock, tenant: str
) -> None:
    clock.set(at("2026-03-10T23:59:00"))
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_day=100))
    late = await clocked.reserve(tenant, "a", prompt_tokens=10, max_tokens=90)
    clock.advance(60_000)
    await clocked.reserve(tenant, "b", prompt_tokens=1, max_tokens=0)
    settlement = await late.settle(computed_tokens=10, cached_tokens=0, output_tokens=90)
    assert (settlement.charged_tokens, settlement.uncharged_tokens) == (10, 90)
    usage = await clocked.usage(tenant)
    assert (usage.day.used, usage.day.reserved, usage.month.used) == (0, 1, 10)
