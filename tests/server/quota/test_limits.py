"""One story for each limit: what is admitted, what is refused, with which words, and when a retry succeeds."""

from __future__ import annotations

import pytest

from infer_engine.errors import InvalidRequestError
from infer_server.quota import QuotaDenied, QuotaLimits, QuotaStore


async def denied(store: QuotaStore, tenant: str, request_id: str, prompt: int = 10, output: int = 10) -> QuotaDenied:
    with pytest.raises(QuotaDenied) as caught:
        await store.reserve(tenant, request_id, prompt_tokens=prompt, max_tokens=output)
    return caught.value


async def admit(store: QuotaStore, tenant: str, *request_ids: str, prompt: int = 10, output: int = 10) -> None:
    for request_id in request_ids:
        await store.reserve(tenant, request_id, prompt_tokens=prompt, max_tokens=output)


async def test_requests_per_minute(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(requests_per_minute=3))
    await admit(clocked, tenant, "a", "b", "c")
    error = await denied(clocked, tenant, "d")
    assert (error.reason, error.retry_ms, error.code) == ("requests_per_minute", 20_000, "quota_requests_per_minute")
    assert str(error) == (
        f"tenant {tenant} is at its limit of 3 requests per minute: retry in 20 s, or have requestsPerMinute raised"
    )
    clock.advance(error.retry_ms - 1)
    await denied(clocked, tenant, "d")
    clock.advance(1)
    await admit(clocked, tenant, "d")


async def test_tokens_per_minute_reserves_prompt_and_output(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_minute=6_000))
    await admit(clocked, tenant, "a", prompt=4_000, output=1_500)
    error = await denied(clocked, tenant, "b", prompt=500, output=100)
    assert (error.reason, error.retry_ms) == ("tokens_per_minute", 1_000)  # 100 tokens short, at 100 a second
    assert "6000 tokens per minute" in str(error)
    clock.advance(1_000)
    await admit(clocked, tenant, "b", prompt=500, output=100)


async def test_settling_refunds_the_minute(clocked: QuotaStore, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_minute=100))
    first = await clocked.reserve(tenant, "a", prompt_tokens=50, max_tokens=50)
    await denied(clocked, tenant, "b", prompt=50, output=10)
    await first.settle(computed_tokens=30, cached_tokens=0, output_tokens=10)
    await admit(clocked, tenant, "b", prompt=50, output=10)


async def test_burst_is_what_may_come_at_once(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(
        tenant, QuotaLimits(requests_per_minute=60, requests_burst=2, tokens_per_minute=600, tokens_burst=1_000)
    )
    await admit(clocked, tenant, "a", prompt=500, output=400)  # more than a minute's worth
    await admit(clocked, tenant, "b")
    clock.advance(3_600_000)
    usage = await clocked.usage(tenant)
    assert usage.requests is not None
    assert usage.tokens is not None
    assert (usage.requests.left, usage.tokens.left) == (2, 1_000)  # an idle hour fills the burst, not more
    await admit(clocked, tenant, "c", "d")
    assert (await denied(clocked, tenant, "e")).retry_ms == 1_000


async def test_concurrency(clocked: QuotaStore, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(max_concurrent_requests=2))
    first = await clocked.reserve(tenant, "a", prompt_tokens=1, max_tokens=1)
    await admit(clocked, tenant, "b")
    error = await denied(clocked, tenant, "c")
    assert error.reason == "concurrency"
    assert error.retry_ms
    assert "limit of 2 concurrent requests: retry when one of its requests has ended" in str(error)
    await first.settle(computed_tokens=1, cached_tokens=0, output_tokens=1)
    await admit(clocked, tenant, "c")


@pytest.mark.parametrize(
    ("limits", "reason", "hours"),
    [
        (QuotaLimits(tokens_per_day=100), "tokens_per_day", 12),
        (QuotaLimits(tokens_per_month=100), "tokens_per_month", 12 + 21 * 24),  # noon of 10 March until 1 April
    ],
)
async def test_window(clocked: QuotaStore, tenant: str, limits: QuotaLimits, reason: str, hours: int) -> None:
    await clocked.set_limits(tenant, limits)
    first = await clocked.reserve(tenant, "a", prompt_tokens=40, max_tokens=40)
    error = await denied(clocked, tenant, "b", prompt=20, output=10)
    assert error.reason == reason
    assert error.retry_ms == 1_000  # what is in the way is only reserved: much of it may come back
    await first.settle(computed_tokens=40, cached_tokens=0, output_tokens=40)
    error = await denied(clocked, tenant, "b", prompt=20, output=10)
    assert error.retry_ms == hours * 3_600_000
    assert f"{hours}.0 h" in str(error)
    await admit(clocked, tenant, "c")  # 20 tokens just fit
    usage = await clocked.usage(tenant)
    assert (usage.day.used, usage.day.reserved) == (usage.month.used, usage.month.reserved) == (80, 20)


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (QuotaLimits(tokens_per_minute=99), "tokensPerMinute 99"),
        (QuotaLimits(tokens_per_minute=99, tokens_burst=50), "tokensBurst 50"),
        (QuotaLimits(tokens_per_day=99), "tokensPerDay 99"),
        (QuotaLimits(tokens_per_month=99), "tokensPerMonth 99"),
    ],
)
async def test_too_large_never_fits(clocked: QuotaStore, tenant: str, limits: QuotaLimits, named: str) -> None:
    await clocked.set_limits(tenant, limits)
    error = await denied(clocked, tenant, "a", prompt=60, output=40)
    assert (error.reason, error.retry_ms) == ("too_large", None)
    assert "reserves 100 tokens" in str(error)
    assert named in str(error)
    assert "lower max_tokens" in str(error)


async def test_unknown_tenant_is_denied(clocked: QuotaStore, tenant: str) -> None:
    error = await denied(clocked, tenant, "a")
    assert (error.reason, error.retry_ms) == ("unknown_tenant", None)
    assert tenant in str(error)
    with pytest.raises(QuotaDenied):
        await clocked.usage(tenant)


async def test_no_limit_at_all_admits_and_counts(clocked: QuotaStore, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits())
    await admit(clocked, tenant, *(str(n) for n in range(50)), prompt=10**9, output=10**9)
    usage = await clocked.usage(tenant)
    assert usage.live == 50
    assert usage.day.reserved == 100 * 10**9
    assert usage.requests is None
    assert usage.tokens is None


async def test_of_several_limits_the_longest_wait_is_told(clocked: QuotaStore, tenant: str) -> None:
    await clocked.set_limits(
        tenant, QuotaLimits(max_concurrent_requests=1, requests_per_minute=1, tokens_per_minute=600)
    )
    await admit(clocked, tenant, "a", prompt=300, output=300)
    error = await denied(clocked, tenant, "b", prompt=10, output=0)
    assert (error.reason, error.retry_ms) == ("requests_per_minute", 60_000)


async def test_a_denial_takes_nothing(clocked: QuotaStore, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(requests_per_minute=5, tokens_per_minute=100, tokens_per_day=1_000))
    await admit(clocked, tenant, "a", prompt=50, output=30)
    before = await clocked.usage(tenant)
    for n in range(5):
        await denied(clocked, tenant, f"b{n}", prompt=20, output=20)
    assert await clocked.usage(tenant) == before


async def test_tenants_do_not_share(clocked: QuotaStore, tenant: str) -> None:
    other = tenant + "x"
    for name in (tenant, other):
        await clocked.set_limits(name, QuotaLimits(requests_per_minute=1))
    await admit(clocked, tenant, "a")
    await denied(clocked, tenant, "b")
    await admit(clocked, other, "a")


async def test_limits_change_at_once(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(requests_per_minute=1))
    await admit(clocked, tenant, "a")
    await denied(clocked, tenant, "b")
    await clocked.set_limits(tenant, QuotaLimits())  # the earlier limit leaves no trace
    await admit(clocked, tenant, "b", "c")
    await clocked.set_limits(tenant, QuotaLimits(requests_per_minute=2))
    await admit(clocked, tenant, "d", "e")
    error = await denied(clocked, tenant, "f")
    clock.advance(error.retry_ms or 0)
    await admit(clocked, tenant, "f")


async def test_lowering_a_limit_shrinks_the_bucket(clocked: QuotaStore, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_minute=1_000))
    await admit(clocked, tenant, "a")
    await clocked.set_limits(tenant, QuotaLimits(tokens_per_minute=100))
    await admit(clocked, tenant, "b", prompt=100, output=0)
    await denied(clocked, tenant, "c")


async def test_the_bucket_ignores_a_clock_that_goes_back(clocked: QuotaStore, clock, tenant: str) -> None:
    await clocked.set_limits(tenant, QuotaLimits(requests_per_minute=4))
    await admit(clocked, tenant, "a")
    clock.advance(-30_000)
    usage = await clocked.usage(tenant)
    assert usage.requests is not None
    assert usage.requests.left == 3  # nothing is taken away
    await admit(clocked, tenant, "b", "c", "d")
    clock.advance(30_000)
    await denied(clocked, tenant, "e")  # and nothing is refilled twice
    clock.advance(15_000)
    await admit(clocked, tenant, "e")


@pytest.mark.parametrize(
    ("prompt", "output", "request_id"),
    [(-1, 5, "a"), (5, -1, "a"), (0, 0, "a"), (2**53, 1, "a"), (1, 1, ""), (1, 1, "x" * 257)],
)
async def test_nonsense_is_refused(store: QuotaStore, tenant: str, prompt: int, output: int, request_id: str) -> None:
    with pytest.raises(InvalidRequestError):
        await store.reserve(tenant, request_id, prompt_tokens=prompt, max_tokens=output)


@pytest.mark.parametrize("name", ["", "a{b}", "x" * 257])
async def test_a_tenant_that_would_leave_its_hash_tag_is_refused(store: QuotaStore, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 256 characters"):
        await store.usage(name)
