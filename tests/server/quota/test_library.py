"""The function library in the store: loaded once, replaced when it differs; and the encoding of limits that it reads."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import infer_server.quota
from infer_server.contract.limits import decode_limits, encode_limits
from infer_server.quota import EmbeddedStore, QuotaLimits, QuotaStore, QuotaUnavailable
from infer_server.quota.library import NAME, ensure_loaded, text


async def loads(store: QuotaStore) -> int:
    statistics = await store._connection.client.info("commandstats")
    return int(statistics.get("cmdstat_function|load", {}).get("calls", 0))


async def test_it_is_loaded_only_when_it_differs(tmp_path) -> None:
    with EmbeddedStore(tmp_path) as server:
        async with QuotaStore.open(server.url, timeout_seconds=5) as store:
            assert await loads(store) == 1
            async with QuotaStore.open(server.url, timeout_seconds=5):
                assert await loads(store) == 1
            await ensure_loaded(store._connection.client, text() + "\n-- another patch\n")
            assert await loads(store) == 2
            async with QuotaStore.open(server.url, timeout_seconds=5):
                assert await loads(store) == 3


async def test_where_others_load_it_is_used_as_it_is(tmp_path) -> None:
    with EmbeddedStore(tmp_path) as server:
        async with QuotaStore.open(server.url, timeout_seconds=5) as store:
            client = store._connection.client
            rights = ("~inferengine:*", "+@all", "-function|load")
            await client.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">x", *rights)
            await ensure_loaded(client, text() + "\n-- another patch\n")
            async with QuotaStore.open(server.url.replace("//", "//limited:x@", 1), timeout_seconds=5) as limited:
                await limited.set_limits("n/d/t", QuotaLimits(tokens_per_day=50))
                assert (await limited.usage("n/d/t")).limits == QuotaLimits(tokens_per_day=50)
                await client.function_flush()
                with pytest.raises(QuotaUnavailable, match="no permissions to run the 'function\\|load' command"):
                    await limited.usage("n/d/t")


def test_every_function_is_registered_under_the_major_version() -> None:
    names = re.findall(r"(?:register_function\(|function_name = )'(\w+)'", text())
    assert text().splitlines()[0] == f"#!lua name={NAME}"
    assert sorted(names) == [f"{NAME}_{verb}" for verb in ("renew", "reserve", "settle", "sweep", "usage")]


counts = st.none() | st.integers(1, 2**53)


@given(
    st.builds(
        QuotaLimits,
        requests_per_minute=counts,
        tokens_per_minute=counts,
        max_concurrent_requests=counts,
        tokens_per_day=counts,
        tokens_per_month=counts,
        cached_token_weight=st.floats(0, 1),
        requests_burst=counts,
        tokens_burst=counts,
    )
)
def test_limits_read_back_the_same(limits: QuotaLimits) -> None:
    assert decode_limits(encode_limits(limits)) == limits


async def test_the_library_reads_every_field_that_is_written(store: QuotaStore, tenant: str) -> None:
    assert set(encode_limits(QuotaLimits())) == set(re.findall(r"'(\w+)'", text().split("LIMITS = {")[1].split("}")[0]))
    limits = QuotaLimits(tokens_per_minute=2**53, tokens_per_day=2**53, cached_token_weight=0.1)
    await store.set_limits(tenant, limits)
    assert (await store.usage(tenant)).limits == limits


def test_limits_of_a_later_version_are_read() -> None:
    assert decode_limits({"tokensPerDay": "5", "tokensPerCentury": "9"}) == QuotaLimits(tokens_per_day=5)


def test_damaged_limits_name_the_field() -> None:
    with pytest.raises(ValueError, match="tokensPerDay"):
        decode_limits({"tokensPerDay": "many"})


def test_all_is_complete() -> None:
    public = {name for name, value in vars(infer_server.quota).items() if isinstance(value, type) or callable(value)}
    assert public == set(infer_server.quota.__all__)
