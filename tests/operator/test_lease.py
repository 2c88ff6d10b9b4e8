"""Who leads, with a small server in memory that compares resourceVersions as the real one does."""

from __future__ import annotations

import asyncio
import copy
import random

import pytest

from infer_operator.kube import ApiError, Kind, Object, UnreachableError
from infer_operator.lease import Lease, Timing

QUICK = Timing(duration=1, renew_within=0.4, attempt=0.2, retry=0.02)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Server:
    """Holds one Lease; `down` while it can't be reached."""

    def __init__(self) -> None:
        self.object: Object | None = None
        self.version = 0
        self.down = False

    async def read(self, kind: Kind, namespace: str, name: str) -> Object | None:
        await self._answer()
        return copy.deepcopy(self.object)

    async def create(self, manifest: Object, kind: Kind) -> Object:
        await self._answer()
        if self.object is not None:
            raise ApiError(409, "AlreadyExists", "")
        return self._store(manifest | {"metadata": manifest["metadata"] | {"uid": "u"}})

    async def replace(self, manifest: Object, kind: Kind) -> Object:
        await self._answer()
        assert self.object is not None
        if manifest["metadata"]["resourceVersion"] != str(self.version):
            raise ApiError(409, "Conflict", "")
        return self._store(manifest)

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise UnreachableError("down")

    def _store(self, manifest: Object) -> Object:
        self.version += 1
        self.object = copy.deepcopy(manifest)
        self.object["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.object)

    @property
    def holder(self) -> str:
        assert self.object is not None
        return str(self.object["spec"]["holderIdentity"])


@pytest.fixture
def server() -> Server:
    return Server()


def member(server: Server, name: str, clock: Clock) -> Lease:
    return Lease(server, "system", "operator", name, clock=clock)


async def test_the_first_leads_and_the_second_waits(server: Server) -> None:
    clock = Clock()
    one, two = member(server, "one", clock), member(server, "two", clock)
    assert await one.try_once()
    assert not await two.try_once()
    assert await one.try_once()
    assert (server.holder, one.uid) == ("one", "u")


async def test_a_holder_that_stops_renewing_is_replaced_after_the_duration(server: Server) -> None:
    clock = Clock()
    one, two = member(server, "one", clock), member(server, "two", clock)
    assert await one.try_once()
    for seconds, taken in ((0, False), (14, False), (1, True)):
        clock.now += seconds
        assert await two.try_once() is taken
    assert not await one.try_once()
    assert server.object is not None
    assert server.object["spec"]["leaseTransitions"] == 1


async def test_a_renewal_starts_the_wait_anew(server: Server) -> None:
    clock = Clock()
    one, two = member(server, "one", clock), member(server, "two", clock)
    assert await one.try_once()
    for _ in range(5):
        assert not await two.try_once()
        clock.now += 14
        assert await one.try_once()
    assert not await two.try_once()


async def test_of_many_that_try_at_once_one_wins(server: Server) -> None:
    clock = Clock()
    members = [member(server, str(number), clock) for number in range(8)]
    results = await asyncio.gather(*(one.try_once() for one in members), return_exceptions=True)
    assert results.count(True) == 1
    clock.now += 100
    await asyncio.gather(*(one.try_once() for one in members))
    clock.now += 100
    results = await asyncio.gather(*(one.try_once() for one in members))
    assert results.count(True) == 1


def test_timing_that_would_let_two_lead_is_refused() -> None:
    with pytest.raises(AssertionError, match="L1"):
        Timing(duration=10)


async def test_work_that_ends_gives_the_lease_back(server: Server) -> None:
    changes: list[bool] = []

    async def work() -> None:
        assert server.holder == "one"

    assert await Lease(server, "system", "operator", "one", QUICK).hold(work, changes.append)
    assert (changes, server.holder) == ([True, False], "")
    assert await Lease(server, "system", "operator", "two", QUICK).hold(_nothing, changes.append)


async def test_what_the_work_raises_is_raised(server: Server) -> None:
    async def work() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await Lease(server, "system", "operator", "one", QUICK).hold(work, lambda _: None)
    assert server.holder == ""


async def test_work_stops_when_the_lease_cannot_be_renewed(server: Server) -> None:
    stopped = asyncio.Event()

    async def work() -> None:
        server.down = True
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    assert not await Lease(server, "system", "operator", "one", QUICK).hold(work, lambda _: None)
    assert stopped.is_set()
    assert server.holder == "one"  # it could not be given back: others wait for its end


async def test_never_two_at_work_while_the_server_comes_and_goes(server: Server) -> None:
    at_work: set[str] = set()
    terms = 0
    enough = asyncio.Event()

    async def candidate(name: str) -> None:
        nonlocal terms

        async def work() -> None:
            nonlocal terms
            assert not at_work
            at_work.add(name)
            terms += 1
            if terms == 12:
                enough.set()
            try:
                await asyncio.sleep(random.random() * 0.2)
            finally:
                at_work.remove(name)

        while terms < 12:
            await Lease(server, "system", "operator", name, QUICK).hold(work, lambda _: None)

    async def trouble() -> None:
        while True:
            await asyncio.sleep(random.random() * 0.3)
            server.down = not server.down

    unrest = asyncio.create_task(trouble())
    async with asyncio.timeout(60):
        tasks = [asyncio.create_task(candidate(name)) for name in ("a", "b", "c")]
        await enough.wait()
        unrest.cancel()
        server.down = False
        await asyncio.gather(*tasks)
    assert terms >= 12


async def _nothing() -> None:
    return None
