"""A real Valkey for the tests of the quota room: one on the store's own clock, and one whose clock the test sets.

The second runs the same function library but for the line that asks for TIME, so that midnights, refills and expiries are
tested without waiting for them.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime

import pytest
import redis

from infer_server.quota import EmbeddedStore, QuotaStore
from infer_server.quota.connection import connect
from infer_server.quota.library import text

ASK_TIME = "local time = redis.call('TIME')"
SET_TIME = "local ms = redis.call('GET', 'test:clock'); local time = { math.floor(ms / 1000), ms % 1000 * 1000 }"
PATIENCE = 5.0
"""seconds of socket time-out where a test is not about time-outs: the machine may be busy"""


class Clock:
    """The time of the store, in ms since the epoch. Set synchronously: no task runs meanwhile."""

    def __init__(self, socket: str) -> None:
        self._client = redis.Redis(unix_socket_path=socket)
        self.now = 0
        self.set(datetime(2026, 3, 10, 12, 0, tzinfo=UTC))

    def set(self, moment: datetime) -> None:
        self.now = int(moment.timestamp() * 1000)
        self._client.set("test:clock", self.now)

    def advance(self, ms: int) -> None:
        self.now += ms
        self._client.set("test:clock", self.now)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def clocked_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path_factory.mktemp("clocked")) as server:
        yield server


@pytest.fixture
def clock(clocked_valkey: EmbeddedStore) -> Iterator[Clock]:
    clock = Clock(clocked_valkey.url.removeprefix("unix://"))
    yield clock
    clock.close()


@pytest.fixture
def clocked_library() -> str:
    code = text()
    assert code.count(ASK_TIME) == 1
    return code.replace(ASK_TIME, SET_TIME)


@pytest.fixture
def tenant() -> str:
    return f"local/test/{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def store(valkey: EmbeddedStore) -> AsyncIterator[QuotaStore]:
    async with QuotaStore.open(valkey.url, timeout_seconds=PATIENCE) as store:
        yield store


@pytest.fixture
async def clocked(clocked_valkey: EmbeddedStore, clock: Clock, clocked_library: str) -> AsyncIterator[QuotaStore]:
    """A store with leases of 10 s that are held for 20 s more, on the test's clock."""
    connection = connect(clocked_valkey.url, timeout_seconds=PATIENCE)
    store = QuotaStore(connection, lease_seconds=10, hold_seconds=20, library_code=clocked_library)
    await store.load_library()
    yield store
    await connection.client.aclose()


@pytest.fixture
async def audit(
    clocked_valkey: EmbeddedStore, tenant: str
) -> AsyncIterator[Callable[[], Awaitable[list[dict[str, str]]]]]:
    connection = connect(clocked_valkey.url, timeout_seconds=PATIENCE)

    async def entries() -> list[dict[str, str]]:
        return [fields for _, fields in await connection.client.xrange(f"inferengine:{{{tenant}}}:audit")]

    yield entries
    await connection.client.aclose()


@pytest.fixture(scope="session")
def soak() -> bool:
    return os.environ.get("INFERENGINE_TEST_PROFILE") == "soak"
