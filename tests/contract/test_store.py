"""The desired state's store, against a real Valkey: compare-and-set, limits, and followers that outlive a restart."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from infer_server.contract.document import DesiredState, QuotaLimits, TenantEntry, Version, encode
from infer_server.contract.keys import document_key, pod_report_key, tenant_key
from infer_server.contract.limits import encode_limits
from infer_server.contract.report import (
    MAX_OBSTACLES,
    OBSTACLE_CHARACTERS,
    REPORT_SECONDS,
    REPORT_TTL_SECONDS,
    PodReport,
    make_report,
)
from infer_server.contract.store import DocumentStore, RevisionConflictError, StoreUnavailableError

names = (f"d{i}" for i in itertools.count())


def tenant(name: str, quota: QuotaLimits | None = None) -> TenantEntry:
    return TenantEntry(
        name=name,
        uid=f"uid-{name}",
        port=20000,
        public_keys=("k" * 40,),
        quota=quota or QuotaLimits(tokens_per_minute=7),
    )


def document(
    deployment: str, revision: int, *tenants: TenantEntry, uid: str = "u", generation: int = 1
) -> DesiredState:
    version = Version(uid=uid, generation=generation, revision=revision)
    return DesiredState(version=version, namespace="local", deployment=deployment, tenants=tenants)


@pytest.fixture
def deployment() -> str:
    return next(names)


@pytest.fixture
async def store(shared_valkey: Any, deployment: str) -> AsyncIterator[DocumentStore]:
    store = DocumentStore(shared_valkey.url, "local", deployment)
    yield store
    await store.close()


@pytest.fixture
async def redis(shared_valkey: Any) -> AsyncIterator[Any]:
    async with Redis.from_url(shared_valkey.url) as client:
        yield client


async def next_of(documents: AsyncIterator[DesiredState]) -> DesiredState:
    return await asyncio.wait_for(anext(documents), 20)


async def limits_of(redis: Any, deployment: str, name: str) -> dict[str, str]:
    stored = await redis.hgetall(tenant_key(f"local/{deployment}/{name}", "limits"))
    return {field.decode(): value.decode() for field, value in stored.items()}


async def test_what_is_written_is_read(store: DocumentStore, deployment: str) -> None:
    assert await store.read() is None
    first = document(deployment, 1, tenant("acme"))
    await store.write(first, expected_revision=0)
    assert await store.read() == first


async def test_a_writer_that_read_an_old_revision_is_refused(store: DocumentStore, deployment: str) -> None:
    await store.write(document(deployment, 1, tenant("acme")), expected_revision=0)
    await store.write(document(deployment, 2), expected_revision=1)
    for expected in (0, 1, 3):
        with pytest.raises(RevisionConflictError, match=f"revision is 2, not {expected}"):
            await store.write(document(deployment, 9, tenant("late")), expected_revision=expected)
    assert await store.read() == document(deployment, 2)


async def test_the_revision_must_rise(store: DocumentStore, deployment: str) -> None:
    with pytest.raises(ValueError, match="revision: got 4; must be greater than 4"):
        await store.write(document(deployment, 4), expected_revision=4)


async def test_concurrent_writers_lose_no_change(shared_valkey: Any, deployment: str) -> None:
    async def add_tenants(writer: int) -> None:
        store = DocumentStore(shared_valkey.url, "local", deployment)
        for number in range(8):
            while True:
                before = await store.read()
                revision = before.version.revision if before else 0
                tenants = (*(before.tenants if before else ()), tenant(f"w{writer}-{number}"))
                try:
                    await store.write(document(deployment, revision + 1, *tenants), expected_revision=revision)
                    break
                except RevisionConflictError:
                    continue
        await store.close()

    await asyncio.gather(*(add_tenants(writer) for writer in range(6)))
    store = DocumentStore(shared_valkey.url, "local", deployment)
    final = await store.read()
    await store.close()
    assert final is not None
    assert final.version.revision == 48
    assert {entry.name for entry in final.tenants} == {
        f"w{writer}-{number}" for writer in range(6) for number in range(8)
    }


async def test_limits_come_change_and_go_with_their_tenant(store: DocumentStore, deployment: str, redis: Any) -> None:
    small, large = QuotaLimits(requests_per_minute=2), QuotaLimits(tokens_per_minute=500)
    await store.write(document(deployment, 1, tenant("acme", small), tenant("beta", small)), expected_revision=0)
    assert await limits_of(redis, deployment, "beta") == {k: str(v) for k, v in encode_limits(small).items()}
    await store.write(document(deployment, 2, tenant("acme", large)), expected_revision=1)
    assert await limits_of(redis, deployment, "acme") == {k: str(v) for k, v in encode_limits(large).items()}
    assert await limits_of(redis, deployment, "beta") == {}


async def test_a_refused_write_leaves_the_limits_alone(store: DocumentStore, deployment: str, redis: Any) -> None:
    await store.write(document(deployment, 1, tenant("acme", QuotaLimits(requests_per_minute=2))), expected_revision=0)
    before = await limits_of(redis, deployment, "acme")
    with pytest.raises(RevisionConflictError):
        await store.write(
            document(deployment, 5, tenant("acme", QuotaLimits(requests_per_minute=9))), expected_revision=4
        )
    assert await limits_of(redis, deployment, "acme") == before


async def test_a_follower_sees_the_current_document_and_each_newer_one(store: DocumentStore, deployment: str) -> None:
    await store.write(document(deployment, 1), expected_revision=0)
    documents = store.follow()
    assert (await next_of(documents)).version.revision == 1
    await store.write(document(deployment, 2, tenant("acme")), expected_revision=1)
    assert (await next_of(documents)).tenants[0].name == "acme"
    await store.write(document(deployment, 3), expected_revision=2)
    await store.write(document(deployment, 4), expected_revision=3)
    revisions = [(await next_of(documents)).version.revision]
    while revisions[-1] != 4:
        revisions.append((await next_of(documents)).version.revision)
    assert revisions in ([3, 4], [4])


async def test_a_follower_waits_for_the_first_document(store: DocumentStore, deployment: str) -> None:
    documents = store.follow()
    waiting = asyncio.ensure_future(next_of(documents))
    await store.ping()
    await store.write(document(deployment, 1), expected_revision=0)
    assert (await waiting).version.revision == 1


async def test_an_older_version_of_the_same_uid_is_never_followed(
    store: DocumentStore, deployment: str, redis: Any
) -> None:
    await store.write(document(deployment, 5), expected_revision=0)
    documents = store.follow()
    assert (await next_of(documents)).version.revision == 5
    await redis.delete(document_key("local", deployment))  # as a store that lost its last writes
    await store.write(document(deployment, 3), expected_revision=0)
    waiting = asyncio.ensure_future(next_of(documents))
    await store.write(document(deployment, 6, uid="u"), expected_revision=3)
    assert (await waiting).version.revision == 6


async def test_another_uid_replaces(store: DocumentStore, deployment: str) -> None:
    await store.write(document(deployment, 1, generation=7), expected_revision=0)
    documents = store.follow()
    await next_of(documents)
    await store.write(document(deployment, 2, uid="made-again", generation=1), expected_revision=1)
    assert (await next_of(documents)).version.uid == "made-again"


async def test_a_follower_outlives_a_restart_of_the_store(valkey: Any) -> None:
    store = DocumentStore(valkey.url, "local", "d")
    await store.write(document("d", 1), expected_revision=0)
    documents = store.follow()
    assert (await next_of(documents)).version.revision == 1
    waiting = asyncio.ensure_future(next_of(documents))
    await asyncio.to_thread(valkey.stop)
    with pytest.raises(StoreUnavailableError):
        await store.read()
    await asyncio.to_thread(valkey.start)
    await store.write(document("d", 2, tenant("acme")), expected_revision=1)
    assert (await waiting).version.revision == 2
    await store.close()


async def test_a_document_that_is_not_understood_keeps_the_last_one(
    store: DocumentStore, deployment: str, redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await store.write(document(deployment, 1), expected_revision=0)
    documents = store.follow()
    await next_of(documents)
    await redis.hset(document_key("local", deployment), mapping={"revision": 2, "body": '{"version": 1}'})
    waiting = asyncio.ensure_future(next_of(documents))
    async with asyncio.timeout(20):
        while "cannot be followed" not in caplog.text:  # noqa: ASYNC110 - a log has no event to wait for
            await asyncio.sleep(0.02)
    await redis.hset(
        document_key("local", deployment), mapping={"revision": 1, "body": encode(document(deployment, 1))}
    )
    await store.write(document(deployment, 3), expected_revision=1)
    assert (await waiting).version.revision == 3


async def test_a_refusal_by_the_store_is_no_answer_either(store: DocumentStore, deployment: str, redis: Any) -> None:
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailableError, match=r"the store refused: .*maxmemory"):
            await store.write(document(deployment, 1, tenant("acme")), expected_revision=0)
    finally:
        await redis.config_set("maxmemory", "0")
    assert await store.read() is None


# --- what pods report ------------------------------------------------------------------------------------------------
VERSION = Version(uid="u", generation=1, revision=4)


async def test_pods_reports_are_read_by_name(store: DocumentStore, deployment: str, redis: Any) -> None:
    assert await store.reports([]) == {}
    await store.report("a", make_report(VERSION, []))
    await store.report("b", make_report(None, ["the model is not loaded"]))
    await store.report("b", make_report(VERSION, ["draining"]))
    await redis.set(pod_report_key("local", deployment, "damaged"), b"{")
    found = await store.reports(["a", "b", "damaged", "silent"])
    assert found == {
        "a": PodReport(version=VERSION),
        "b": PodReport(version=VERSION, obstacles=("draining",)),
        "damaged": None,
        "silent": None,
    }


async def test_a_report_ends_by_itself_later_than_the_next_is_due(
    store: DocumentStore, deployment: str, redis: Any
) -> None:
    await store.report("a", make_report(VERSION, []))
    left = await redis.ttl(pod_report_key("local", deployment, "a"))
    assert 2 * REPORT_SECONDS < left <= REPORT_TTL_SECONDS


async def test_a_later_version_s_report_is_read(store: DocumentStore, deployment: str, redis: Any) -> None:
    body = b'{"version": {"uid": "u", "generation": 1, "revision": 4}, "obstacles": [], "adapters": ["x"]}'
    await redis.set(pod_report_key("local", deployment, "newer"), body)
    assert await store.reports(["newer"]) == {"newer": PodReport(version=VERSION)}


async def test_reports_of_a_store_that_is_away(tmp_path: Any) -> None:
    store = DocumentStore(f"unix://{tmp_path}/none", "local", "d")
    with pytest.raises(StoreUnavailableError):
        await store.reports(["a"])
    with pytest.raises(StoreUnavailableError):
        await store.report("a", make_report(VERSION, []))
    await store.close()


def test_a_report_is_bounded() -> None:
    report = make_report(VERSION, ["x" * 1000] * 100)
    assert (len(report.obstacles), len(report.obstacles[0])) == (MAX_OBSTACLES, OBSTACLE_CHARACTERS)
