"""What of a store may go: only what its operator has noted as its own, and only once nobody owns it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from infer_server.contract.keys import document_key, pod_report_key, tenant_key
from infer_server.contract.store import StoreUnavailableError
from infer_server.contract.sweep import StoreSweep

PARTS = ("limits", "state", "leases", "requests", "settled", "audit")
OF_DEPLOYMENT = 2
"""keys of a deployment itself: its document, its operator's note"""


@pytest.fixture
async def redis(shared_valkey: Any) -> AsyncIterator[Redis]:
    async with Redis.from_url(shared_valkey.url, decode_responses=True) as redis:
        await redis.flushall()
        yield redis


@pytest.fixture
async def sweep(shared_valkey: Any) -> AsyncIterator[StoreSweep]:
    sweep = StoreSweep(shared_valkey.url, "me")
    yield sweep
    await sweep.close()


async def fill(redis: Redis, deployment: str, *tenants: str, namespace: str = "ns") -> None:
    await redis.set(document_key(namespace, deployment), "x")
    for tenant in tenants:
        for part in PARTS:
            await redis.set(tenant_key(f"{namespace}/{deployment}/{tenant}", part), "x")


async def owners(redis: Redis) -> set[str]:
    """What stands between the braces of all keys."""
    return {key.partition("{")[2].partition("}")[0] for key in await redis.keys("*")}


async def test_a_purge_takes_one_deployment_and_nothing_else(redis: Redis, sweep: StoreSweep) -> None:
    for name in ("d", "d2", "a-d"):
        await fill(redis, name, "acme", "globex")
        await sweep.register("ns", name)
    await fill(redis, "d", "acme", namespace="ns2")
    await redis.set("somebody:else", "x")
    assert await sweep.purge("ns", "d") == 2 * len(PARTS) + OF_DEPLOYMENT
    assert not {tag for tag in await owners(redis) if tag.startswith("ns/d/") or tag == "ns/d"}
    assert {"ns/d2", "ns/d2/acme", "ns/a-d", "ns2/d", "ns2/d/acme"} <= await owners(redis)
    assert await redis.get("somebody:else") == "x"
    assert await sweep.registered() == {("ns", "d2"), ("ns", "a-d")}


async def test_tenants_alone(redis: Redis, sweep: StoreSweep) -> None:
    await fill(redis, "d", "acme", "globex")
    await sweep.register("ns", "d")
    await sweep.purge_tenants("ns", "d")
    assert await owners(redis) == {"ns/d"}
    assert await sweep.registered() == {("ns", "d")}


async def test_a_sweep_takes_what_has_no_owner(redis: Redis, sweep: StoreSweep) -> None:
    await fill(redis, "gone", "acme")
    await fill(redis, "live", "acme", "left")
    await fill(redis, "another-operators", "acme")
    for name in ("gone", "live"):
        await sweep.register("ns", name)
    assert await sweep.sweep(lambda: {("ns", "live"): ["acme"]}) == 2 * len(PARTS) + OF_DEPLOYMENT
    assert await owners(redis) == {"ns/live", "ns/live/acme", "ns/another-operators", "ns/another-operators/acme"}
    assert await sweep.registered() == {("ns", "live")}
    assert await sweep.sweep(lambda: {("ns", "live"): ["acme"]}) == 0


async def test_two_operators_of_one_store_do_not_meet(redis: Redis, sweep: StoreSweep, shared_valkey: Any) -> None:
    other = StoreSweep(shared_valkey.url, "other")
    await fill(redis, "theirs", "acme")
    await other.register("ns", "theirs")
    assert await sweep.sweep(dict) == 0
    assert await owners(redis) == {"ns/theirs", "ns/theirs/acme"}
    assert await other.sweep(dict) == len(PARTS) + OF_DEPLOYMENT
    await other.close()


async def test_it_does_with_the_rights_of_one_deployment(redis: Redis, sweep: StoreSweep, shared_valkey: Any) -> None:
    """A user who sees its deployment's keys alone, in a store with others': those are nobody's business here."""
    patterns = ("~inferengine:{ns/d}:*", "~inferengine:{ns/d/*}:*")
    await redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">x", "+@all", *patterns)
    await sweep.register("ns", "theirs")
    await fill(redis, "theirs", "acme")
    limited = StoreSweep(shared_valkey.url.replace("unix://", "unix://limited:x@"), "me")
    await limited.register("ns", "d")
    await fill(redis, "d", "acme", "left")
    assert await limited.registered() == {("ns", "d")}
    assert await limited.sweep(lambda: {("ns", "d"): ["acme"]}) == len(PARTS)
    assert await limited.purge("ns", "d") == len(PARTS) + OF_DEPLOYMENT
    assert await owners(redis) == {"ns/theirs", "ns/theirs/acme"}
    with pytest.raises(StoreUnavailableError, match="refused"):
        await limited.register("ns", "theirs")
    await limited.close()


async def test_what_pods_reported_goes_with_their_deployment(redis: Redis, sweep: StoreSweep) -> None:
    """It would end by itself; but a store is to be clean at once."""
    for name in ("d", "gone"):
        await fill(redis, name, "acme")
        await redis.set(pod_report_key("ns", name, "pod-1"), "x")
        await sweep.register("ns", name)
    await sweep.sweep(lambda: {("ns", "d"): ["acme"]})
    assert await redis.exists(pod_report_key("ns", "d", "pod-1"))  # a pod is no tenant that left
    await sweep.purge("ns", "d")
    assert await owners(redis) == set()


async def test_what_came_while_the_keys_were_listed_stays(redis: Redis, sweep: StoreSweep) -> None:
    """The owners are asked for after the listing: a tenant that was added meanwhile is among them."""
    await fill(redis, "d", "acme")
    await sweep.register("ns", "d")
    asked = []

    def live() -> dict[tuple[str, str], list[str]]:
        asked.append(True)
        return {("ns", "d"): ["acme"]}

    assert await sweep.sweep(live) == 0
    assert asked == [True]


async def test_more_keys_than_one_batch(redis: Redis, sweep: StoreSweep) -> None:
    await fill(redis, "d", *(f"t{number}" for number in range(300)))
    await sweep.register("ns", "d")
    assert await sweep.purge("ns", "d") == 300 * len(PARTS) + OF_DEPLOYMENT
    assert await owners(redis) == set()


async def test_a_store_that_is_away_is_told(tmp_path: Any) -> None:
    sweep = StoreSweep(f"unix://{tmp_path}/none", "me")
    for call in (sweep.registered(), sweep.register("ns", "d"), sweep.purge("ns", "d"), sweep.sweep(dict)):
        with pytest.raises(StoreUnavailableError, match="no answer"):
            await call
    await sweep.close()
