"""A store that is gone, hangs, is emptied or refuses us: nothing is admitted, callers wait briefly, no secret is told, and
all goes on by itself when the store is back."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from infer_engine.errors import ConfigError, RetryableError
from infer_server.quota import EmbeddedStore, QuotaDenied, QuotaLimits, QuotaStore, QuotaUnavailable, Use
from infer_server.quota.connection import connect

GIVE_UP = 10.0
"""seconds: far above the time-outs of 0.25 s, far below redis-py's own"""


async def test_stopped_and_started_again(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as first:
        url = first.url
        connection = connect(url, timeout_seconds=5)
        store = QuotaStore(connection)
        await store.load_library()
        await store.set_limits("acme", QuotaLimits(max_concurrent_requests=1))
        reservation = await store.reserve("acme", "r1", prompt_tokens=1, max_tokens=1)
    calls = [
        lambda: store.reserve("acme", "r2", prompt_tokens=1, max_tokens=1),
        lambda: reservation.settle(computed_tokens=1, cached_tokens=0, output_tokens=1),
        lambda: store.renew("acme", {"r1": Use()}),
        lambda: store.sweep("acme"),
        lambda: store.usage("acme"),
        lambda: store.set_limits("acme", QuotaLimits()),
    ]
    for call in calls:
        with pytest.raises(QuotaUnavailable, match="does not answer") as caught:
            async with asyncio.timeout(GIVE_UP):
                await call()
        assert isinstance(caught.value, RetryableError)
        assert (caught.value.code, caught.value.retry_ms) == ("quota_unavailable", 1000)
        assert url in str(caught.value)
    with EmbeddedStore(tmp_path):
        with pytest.raises(QuotaDenied):  # nothing was forgotten meanwhile
            await store.reserve("acme", "r2", prompt_tokens=1, max_tokens=1)
        await reservation.settle(computed_tokens=1, cached_tokens=0, output_tokens=1)
        await store.reserve("acme", "r2", prompt_tokens=1, max_tokens=1)
        await connection.client.aclose()


async def test_opening_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(QuotaUnavailable, match=r"unix://.*/nobody\.sock does not answer"):
        async with QuotaStore.open(f"unix://{tmp_path}/nobody.sock"):
            pass


@asynccontextmanager
async def mute_server(path: Path) -> AsyncIterator[str]:
    """Accepts connections and never answers."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass
        writer.close()

    server = await asyncio.start_unix_server(swallow, path)
    try:
        yield f"unix://{path}"
    finally:
        server.close()
        await server.wait_closed()


async def test_a_store_that_hangs_makes_a_crowd_wait_only_briefly(tmp_path: Path) -> None:
    async with mute_server(tmp_path / "s") as url:
        connection = connect(url, timeout_seconds=0.05)
        store = QuotaStore(connection)
        async with asyncio.timeout(GIVE_UP):
            calls = (store.reserve("acme", f"r{n}", prompt_tokens=1, max_tokens=1) for n in range(200))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {QuotaUnavailable}
        await connection.client.aclose()


async def test_an_emptied_store_gets_its_functions_again_and_denies(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as server:
        async with QuotaStore.open(server.url, timeout_seconds=5) as store:
            await store.set_limits("acme", QuotaLimits())
            await store.reserve("acme", "r1", prompt_tokens=1, max_tokens=1)
            client = store._connection.client
            await client.flushall()
            await client.function_flush()
            with pytest.raises(QuotaDenied) as caught:
                await store.reserve("acme", "r2", prompt_tokens=1, max_tokens=1)
            assert caught.value.reason == "unknown_tenant"
            await store.set_limits("acme", QuotaLimits())
            await store.reserve("acme", "r2", prompt_tokens=1, max_tokens=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokensPerDay", "many"), ("tokensPerDay", "0"), ("tokensPerDay", "-5"), ("requestsPerMinute", "nan"),
     ("tokensPerMinute", "inf"), ("maxConcurrentRequests", "1e300"), ("cachedTokenWeight", "1.5")],
)  # fmt: skip
async def test_damaged_limits_admit_nothing(store: QuotaStore, tenant: str, field: str, value: str) -> None:
    await store.set_limits(tenant, QuotaLimits())
    await store._connection.client.hset(f"inferengine:{{{tenant}}}:limits", field, value)
    with pytest.raises(QuotaUnavailable, match=f"BADLIMITS {field}"):
        await store.reserve(tenant, "a", prompt_tokens=1, max_tokens=1)
    with pytest.raises(QuotaUnavailable, match=f"BADLIMITS {field}"):
        await store.usage(tenant)


async def test_a_full_store_admits_nothing(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as server:
        async with QuotaStore.open(server.url, timeout_seconds=5) as store:
            await store.set_limits("acme", QuotaLimits())
            await store._connection.client.config_set("maxmemory", "1mb")
            with pytest.raises(QuotaUnavailable, match="maxmemory"):
                await store.reserve("acme", "a", prompt_tokens=1, max_tokens=1)


SECRET = "s3cr3t-word"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@127.0.0.1:1/0",
        f"rediss://user:{SECRET}@127.0.0.1:1",
        f"redis://:{SECRET}@localhost:1",
        f"unix://user:{SECRET}@/tmp/nobody-here.sock",
        f"unix:///tmp/nobody-here.sock?password={SECRET}",
        f"redis://127.0.0.1:1?password={SECRET}",
        f"redis://user:{SECRET}/x@127.0.0.1:1",  # a password that was not percent-encoded
        f"redis://user:x#{SECRET}@127.0.0.1:1",
        f"redis://user:x?{SECRET}@127.0.0.1:1",
        f"redis://user:x@{SECRET}@127.0.0.1:1",
        f"redis://user:{SECRET}@127.0.0.1:port",
        f"redis://user:{SECRET}@[::1:1",
        f"redis://user:{SECRET}@127.0.0.1:1?db=x{SECRET}",
        f"http://user:{SECRET}@127.0.0.1:1",
        f"user:{SECRET}@127.0.0.1:1",
        f"unix://{SECRET}",
        f"unix://{SECRET}/tmp/nobody-here.sock",
        f"redis://user:1?{SECRET}@127.0.0.1:1",
        f"redis://user:1/{SECRET}@127.0.0.1:1",
        f"redis://127.0.0.1:1?pass={SECRET}",
        f"redis://127.0.0.1:1?{SECRET}",
        f"redis://127.0.0.1:1/{SECRET}",
    ],
)
async def test_no_secret_of_the_url_is_told(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises((QuotaUnavailable, ConfigError)) as caught:
        async with QuotaStore.open(url):
            pass
    assert SECRET not in caplog.text
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(error)
        error = error.__cause__ or error.__context__


async def test_over_tcp_with_user_password_and_database(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with EmbeddedStore(tmp_path) as server:
        async with QuotaStore.open(server.url, timeout_seconds=5) as store:
            client = store._connection.client
            await client.execute_command("CONFIG", "SET", "port", port, "bind", "127.0.0.1")
            await client.execute_command("ACL", "SETUSER", "pod", "on", ">p@ss/#?", "~inferengine:*", "+@all")
            async with QuotaStore.open(f"redis://pod:p%40ss%2F%23%3F@127.0.0.1:{port}/0", timeout_seconds=5) as remote:
                await remote.set_limits("acme", QuotaLimits(max_concurrent_requests=1))
                await remote.reserve("acme", "r1", prompt_tokens=1, max_tokens=1)
            with pytest.raises(QuotaDenied):
                await store.reserve("acme", "r2", prompt_tokens=1, max_tokens=1)


async def test_a_refused_password_is_told_without_it(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as server:
        async with QuotaStore.open(server.url, timeout_seconds=5) as store:
            await store._connection.client.execute_command("ACL", "SETUSER", "pod", "on", ">right", "~*", "+@all")
            path = server.url.removeprefix("unix://")
            async with QuotaStore.open(f"unix://pod:right@{path}", timeout_seconds=5):
                pass
            with pytest.raises(QuotaUnavailable, match="refuses our user or password") as caught:
                async with QuotaStore.open(f"unix://pod:{SECRET}@{path}", timeout_seconds=5):
                    pass
            assert SECRET not in repr(caught.value)
