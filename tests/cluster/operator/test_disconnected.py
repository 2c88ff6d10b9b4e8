"""The operator's connection to the API server breaks in every way that a network can; edits and deletions go on meanwhile.

It connects through a line of ours, which the test cuts and mends; the test itself has its own connection.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infer_operator.kube import LEASE, RESOURCE

CUTS = 60 if os.environ.get("INFERENGINE_TEST_PROFILE") == "soak" else 6
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST"""


class Line:
    """A TCP proxy to the API server."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._open: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self._flowing = asyncio.Event()
        self._flowing.set()

    def cut(self) -> None:
        """Both sides hear of it: connections are reset, new ones too."""
        self._is_cut = True
        for writer in list(self._open):
            self._reset(writer)

    def silence(self) -> None:
        """Nobody hears of it: connections stay, and nothing comes through."""
        self._flowing.clear()

    def mend(self) -> None:
        self._is_cut = False
        self._flowing.set()

    @staticmethod
    def _reset(writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            self._reset(writer)
            return
        upstream_reader, upstream = await asyncio.open_connection(*self._address)
        self._open |= {writer, upstream}
        try:
            await asyncio.gather(self._pass_on(reader, upstream), self._pass_on(upstream_reader, writer))
        finally:
            self._open -= {writer, upstream}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:  # cut
            pass
        finally:
            writer.close()


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    """Up. An operator that is started by `through` uses it."""
    config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())  # noqa: ASYNC240
    cluster = config["clusters"][0]["cluster"]
    host, _, port = cluster["server"].removeprefix("https://").rpartition(":")
    line = Line(host, int(port))
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    cluster["server"] = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    yield line
    line.mend()
    line.cut()
    server.close()


@pytest.fixture
def through(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """`through(operator)` starts it with the line as its only way to the API server."""

    def start(operator: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
            operator.start()

    return start


async def holder(home: Any) -> tuple[str, int]:
    spec = (await home.get(LEASE, "inferengine-operator"))["spec"]
    return spec["holderIdentity"], spec.get("leaseTransitions", 0)


async def test_connections_that_are_reset_again_and_again(
    home: Any, operators: Any, line: Line, through: Any, until: Any, until_leads: Any
) -> None:
    rng = random.Random(7)
    operator = operators()
    through(operator)
    await until_leads(operator)
    before = await holder(home)
    await home.apply("d", "acme")
    await home.settled("d")
    tenants, starts = ["acme"], [1]
    keeper = asyncio.create_task(keep_running(operator, through, starts))
    for number in range(CUTS):
        tenants.append(f"t-{number}")
        await home.apply("d", *tenants[-5:])
        await asyncio.sleep(rng.random() * 0.1)  # anywhere in its work
        line.cut()
        tenants.append(f"u-{number}")
        await home.apply("d", *tenants[-5:])
        await asyncio.sleep(rng.random())
        line.mend()
        if number % 3 == 0:
            await home.settled("d")
            assert list(home.entries("d")) == tenants[-5:]
    await home.settled("d")
    assert list(home.entries("d")) == tenants[-5:]
    keeper.cancel()
    print(f"{CUTS} cuts, {sum(starts)} starts")
    assert (await holder(home) == before) == (sum(starts) == 1)  # it leads all the time, unless it ended
    assert operator.leads()
    assert "Traceback" not in operator.log()


async def keep_running(operator: Any, through: Callable[[Any], None], starts: list[int]) -> None:
    """As a Deployment does: one that was cut off whenever it wanted to renew its lease ends, as it has to."""
    while True:
        if operator._process.poll() is not None:
            starts.append(1)
            through(operator)
        await asyncio.sleep(0.1)


async def test_what_was_deleted_meanwhile(
    home: Any, operators: Any, line: Line, through: Any, until: Any, until_leads: Any
) -> None:
    """One with its finalizer left, one without: no watch ever tells of the second."""
    operator = operators(sweep_seconds=1)
    through(operator)
    await until_leads(operator)
    for name in ("kept", "deleted", "stripped"):
        await home.apply(name, "acme")
        await home.settled(name)
    line.cut()
    await home.delete(RESOURCE, "deleted")
    await home.delete(RESOURCE, "stripped")
    await home.kube.merge(RESOURCE, home.namespace, "stripped", {"metadata": {"finalizers": []}})
    await home.gone("stripped")
    assert home.store_keys("stripped")
    line.mend()
    await home.gone("deleted")

    async def nothing_is_left() -> bool:
        owners = {
            found["metadata"].get("labels", {}).get("inferengine.dev/deployment", "kept")
            for found in (await home.objects()).values()
        }
        return owners == {"kept"} and not home.store_keys("deleted") and not home.store_keys("stripped")

    await until(nothing_is_left, "0 orphans, in Kubernetes and in the store")
    assert home.document("kept") is not None


async def test_a_connection_that_falls_silent(
    home: Any, operators: Any, line: Line, through: Any, until: Any, until_leads: Any
) -> None:
    """The leader does not hear that it is alone: it stops before another begins."""
    leader, other = operators(), operators()
    through(leader)
    await until_leads(leader)
    other.start()
    await home.apply("d", "acme")
    await home.settled("d")
    line.silence()
    await home.apply("d", "acme", "globex")
    both = []

    async def other_leads() -> bool:
        leading = await asyncio.to_thread(lambda: (leader.leads(), other.leads()))
        both.append(leading)
        return bool(leading[1])

    await until(other_leads, "the other leads")
    assert (True, True) not in both
    assert (True, False) in both
    await home.settled("d")
    assert list(home.entries("d")) == ["acme", "globex"]
    assert await asyncio.to_thread(leader._process.wait, 60) == 1  # whoever runs it starts it anew
    assert other.leads()
