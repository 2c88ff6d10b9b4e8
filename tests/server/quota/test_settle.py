"""Reserving and settling: the price, idempotence, and ids that are used twice."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest

from infer_server.quota import DuplicateRequest, QuotaDenied, QuotaLimits, QuotaStore, Use


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.25, 0.7, 1.0])
@pytest.mark.parametrize(
    ("computed", "cached", "output"), [(60, 40, 20), (0, 3, 0), (1, 30, 0), (0, 100, 7), (0, 0, 0), (3, 7, 11)]
)
async def test_price(clocked: QuotaStore, tenant: str, weight: float, computed: int, cached: int, output: int) -> None:
    await clocked.set_limits(tenant, QuotaLimits(cached_token_weight=weight))
    reservation = await clocked.reserve(tenant, "a", prompt_tokens=computed + cached + 1, max_tokens=50)
    settlement = await reservation.settle(computed_tokens=computed, cached_tokens=cached, output_tokens=output)
    assert settlement.charged_tokens == ceil(computed + Fraction(str(weight)) * cached + output)
    assert settlement.uncharged_tokens == 0
    usage = await clocked.usage(tenant)
    assert (usage.day.used, usage.day.reserved, usage.live) == (settlement.charged_tokens, 0, 0)


async def test_the_weight_is_that_of_the_reservation(clocked: QuotaStore, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(cached_token_weight=0))
    reservation = await clocked.reserve(tenant, "a", prompt_tokens=100, max_tokens=10)
    await clocked.set_limits(tenant, QuotaLimits(cached_token_weight=1))
    assert (await reservation.settle(computed_tokens=0, cached_tokens=100, output_tokens=1)).charged_tokens == 1


async def test_no_charge_beyond_the_estimate(clocked: QuotaStore, tenant: str, audit) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_day=15))
    reservation = await clocked.reserve(tenant, "a", prompt_tokens=5, max_tokens=10)
    settlement = await reservation.settle(computed_tokens=5, cached_tokens=0, output_tokens=30)
    assert (settlement.charged_tokens, settlement.uncharged_tokens) == (15, 20)
    assert (await clocked.usage(tenant)).day.used == 15
    assert [(e["event"], e["charged"], e["uncharged"]) for e in await audit()] == [("settled", "15", "20")]


async def test_reserve_is_idempotent(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(requests_per_minute=1, max_concurrent_requests=1, tokens_per_day=20))
    first = await clocked.reserve(tenant, "a", prompt_tokens=10, max_tokens=10)
    clock.advance(4_000)
    again = await clocked.reserve(tenant, "a", prompt_tokens=10, max_tokens=10)
    assert again.reserved_tokens == first.reserved_tokens == 20
    assert again.stop_at < first.stop_at  # the lease goes on from the first call; here 4 s of its 10 are over
    usage = await clocked.usage(tenant)
    assert (usage.live, usage.day.reserved) == (1, 20)


async def test_settle_is_idempotent(clocked: QuotaStore, tenant: str, audit) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_minute=1_000))
    reservation = await clocked.reserve(tenant, "a", prompt_tokens=100, max_tokens=100)
    first = await reservation.settle(computed_tokens=50, cached_tokens=0, output_tokens=10)
    usage = await clocked.usage(tenant)
    for output in (10, 100, 0):
        assert await reservation.settle(computed_tokens=50, cached_tokens=0, output_tokens=output) == first
    assert await clocked.usage(tenant) == usage
    assert len(await audit()) == 1


async def test_an_id_is_for_one_request(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits())
    reservation = await clocked.reserve(tenant, "a", prompt_tokens=10, max_tokens=10)
    with pytest.raises(DuplicateRequest, match="'a'"):
        await clocked.reserve(tenant, "a", prompt_tokens=10, max_tokens=11)
    await reservation.settle(computed_tokens=1, cached_tokens=0, output_tokens=0)
    with pytest.raises(DuplicateRequest):  # else its work would go uncharged
        await clocked.reserve(tenant, "a", prompt_tokens=10, max_tokens=10)
    await clocked.reserve(tenant, "b", prompt_tokens=10, max_tokens=10)
    clock.advance(10_000)
    with pytest.raises(DuplicateRequest):  # its lease is over, its place may be another's
        await clocked.reserve(tenant, "b", prompt_tokens=10, max_tokens=10)


async def test_settling_an_unknown_request_charges_nothing(clocked: QuotaStore, tenant: str, audit) -> None:
    await clocked.set_limits(tenant, QuotaLimits())
    settlement = await clocked.settle(tenant, "never", Use(3, 0, 4))
    assert (settlement.charged_tokens, settlement.uncharged_tokens) == (0, 7)
    assert [(e["event"], e["id"], e["uncharged"]) for e in await audit()] == [("unknown", "never", "7")]


async def test_settling_works_after_the_tenant_was_removed(clocked: QuotaStore, clocked_valkey, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_minute=100))
    reservation = await clocked.reserve(tenant, "a", prompt_tokens=10, max_tokens=10)
    await clocked._connection.client.delete(f"inferengine:{{{tenant}}}:limits")
    assert (await reservation.settle(computed_tokens=10, cached_tokens=0, output_tokens=1)).charged_tokens == 11
    with pytest.raises(QuotaDenied, match="no limits"):
        await clocked.reserve(tenant, "b", prompt_tokens=1, max_tokens=1)


async def test_records_are_forgotten(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits())
    for n in range(40):
        await (await clocked.reserve(tenant, str(n), prompt_tokens=1, max_tokens=0)).settle(
            computed_tokens=1, cached_tokens=0, output_tokens=0
        )
    clock.advance(600_000)
    assert await clocked.sweep(tenant) == 0
    client = clocked._connection.client
    for part in ("requests", "settled", "leases"):
        assert not await client.exists(f"inferengine:{{{tenant}}}:{part}")


def test_negative_use_is_refused() -> None:
    with pytest.raises(ValueError, match="cached_tokens is -1"):
        Use(1, -1, 0)
