"""What resources share: connections to stores, of which there are as many as stores; Secrets, which are read when they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from infer_operator.cluster import QuotaStores, Secrets
from infer_operator.kube import Kind, Object
from infer_operator.state import Key
from infer_server.contract.document import DesiredState, Version
from infer_server.contract.store import StoreUnavailableError

WORKERS = 16
FRESH_SECONDS = 20.0


# --- stores --------------------------------------------------------------------------------------------------------------
@pytest.fixture
async def stores() -> AsyncIterator[QuotaStores]:
    stores = QuotaStores()
    stores.operator_id = "me"
    yield stores
    await stores.close()


async def clients(url: str) -> int:
    """But for the one that asks."""
    async with Redis.from_url(url) as redis:
        return len(await redis.client_list()) - 1


def keys(number: int) -> list[Key]:
    return [Key("n", f"d{index}") for index in range(number)]


async def use(stores: QuotaStores, key: Key, url: str) -> None:
    documents = await stores.documents(key, url)
    version = Version(uid=key.name, generation=1, revision=1)
    await documents.write(DesiredState(version=version, namespace=key.namespace, deployment=key.name), 0)
    assert await documents.reports(["p"]) == {"p": None}


async def test_resources_of_one_store_share_its_connections(stores: QuotaStores, valkey: Any) -> None:
    turns = asyncio.Semaphore(WORKERS)

    async def one(key: Key) -> None:
        async with turns:
            await use(stores, key, valkey.url)

    await asyncio.gather(*map(one, keys(200)))
    await stores.sweep(valkey.url).sweep(dict)
    assert 1 <= await clients(valkey.url) <= WORKERS + 1
    for key in keys(200):  # each still sees its own
        document = await (await stores.documents(key, valkey.url)).read()
        assert document is not None
        assert document.version.uid == key.name


async def test_connections_go_with_the_last_who_used_them(stores: QuotaStores, valkey: Any) -> None:
    first, second = keys(2)
    for key in (first, second):
        await use(stores, key, valkey.url)
    await stores.sweep(valkey.url).sweep(dict)
    await stores.forget(first)
    assert await clients(valkey.url) > 0
    assert await (await stores.documents(second, valkey.url)).read() is not None
    await stores.forget(second)
    assert stores.urls() == set()
    await until_none(valkey.url)


async def until_none(url: str) -> None:
    """The server notices a closed connection a moment later."""
    async with asyncio.timeout(20):
        while await clients(url):  # noqa: ASYNC110 - state of another process
            await asyncio.sleep(0.01)


async def test_a_resource_that_moves_to_another_store_leaves_the_first(stores: QuotaStores, valkey: Any) -> None:
    first, second = keys(2)
    for key in (first, second):
        await use(stores, key, valkey.url)
    elsewhere = f"{valkey.url}?db=1"
    await use(stores, first, elsewhere)
    assert (stores.url(first), stores.url(second)) == (elsewhere, valkey.url)
    assert stores.urls() == {elsewhere, valkey.url}
    await stores.forget(second)
    assert stores.urls() == {elsewhere}
    assert await (await stores.documents(first, elsewhere)).read() is not None


async def test_a_url_that_is_none(stores: QuotaStores) -> None:
    with pytest.raises(StoreUnavailableError, match="URL is wrong"):
        await stores.documents(Key("n", "d"), "http://x")
    assert stores.urls() == set()


# --- Secrets -------------------------------------------------------------------------------------------------------------
KEY = Key("n", "d")


class Server:
    """Secrets of one namespace, as an API server holds them, and what it was asked."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.asked: list[tuple[str, str]] = []
        self._version = 0

    def put(self, name: str, data: str) -> None:
        self._version += 1
        self.objects[name] = {"metadata": {"name": name, "resourceVersion": str(self._version)}, "data": data}

    async def read(self, kind: Kind, namespace: str, name: str) -> Object | None:
        self.asked.append(("read", name))
        return self.objects.get(name)

    async def version(self, kind: Kind, namespace: str, name: str) -> str | None:
        self.asked.append(("version", name))
        found = self.objects.get(name)
        return None if found is None else str(found["metadata"]["resourceVersion"])

    def take_asked(self) -> list[tuple[str, str]]:
        asked, self.asked = self.asked, []
        return asked


class Reader:
    def __init__(self, server: Server) -> None:
        self.now = 0.0
        self.server = server
        self.secrets = Secrets(server, FRESH_SECONDS, lambda: self.now)  # type: ignore[arg-type]

    async def look(self, mark: object = 1) -> list[Any]:
        """As one run of the reconciler does."""
        self.secrets.expect(KEY, mark)
        found = [await self.secrets.read(KEY, name) for name in ("a", "b", "a")]
        return [None if one is None else one["data"] for one in found]


async def test_a_secret_is_read_once_while_it_is_fresh() -> None:
    server = Server()
    reader = Reader(server)
    server.put("a", "1")
    assert await reader.look() == ["1", None, "1"]
    assert server.take_asked() == [("read", "a"), ("read", "b")]
    server.put("a", "2")
    reader.now += FRESH_SECONDS - 1
    assert await reader.look() == ["1", None, "1"]
    assert server.take_asked() == []


async def test_later_its_version_is_asked_for_and_only_what_changed_is_read() -> None:
    server = Server()
    reader = Reader(server)
    server.put("a", "1")
    await reader.look()
    server.take_asked()
    for change, asked, found in (
        (lambda: None, [("version", "a"), ("version", "b")], ["1", None, "1"]),
        (lambda: server.put("a", "2"), [("version", "a"), ("read", "a"), ("version", "b")], ["2", None, "2"]),
        (lambda: server.put("b", "3"), [("version", "a"), ("version", "b"), ("read", "b")], ["2", "3", "2"]),
        (lambda: server.objects.pop("a"), [("version", "a"), ("read", "a"), ("version", "b")], [None, "3", None]),
    ):
        change()
        reader.now += FRESH_SECONDS
        assert await reader.look() == found
        assert server.take_asked() == asked


async def test_after_an_edit_of_the_resource_all_is_read() -> None:
    server = Server()
    reader = Reader(server)
    server.put("a", "1")
    await reader.look()
    server.put("a", "2")
    server.take_asked()
    assert await reader.look(mark=2) == ["2", None, "2"]
    assert server.take_asked() == [("read", "a"), ("read", "b")]
