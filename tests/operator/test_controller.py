"""What belongs to others stops nobody: stores whose owners let them answer as they like."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from infer_operator.builders import Context
from infer_operator.cluster import Cluster
from infer_operator.controller import Controller
from infer_operator.metrics import Metrics
from infer_operator.state import Key
from infer_operator.store import Store

ANSWERS = (
    b"*1\r\n*0\r\n",
    b":5\r\n",
    b"$-1\r\n",
    b"*2\r\n$1\r\nx\r\n*0\r\n",
    b"*2\r\n$1\r\n0\r\n*1\r\n$2\r\n\xff\xff\r\n",
)
"""to SCAN: too short, a number, nothing, a cursor that is none, a key that is no text"""


class Strange:
    """A server that speaks the protocol and says something else."""

    def __init__(self) -> None:
        self.answer = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while request := await reader.read(65536):
                writer.write(self.answer if b"SCAN" in request else b"+OK\r\n" * (request.count(b"SETINFO") or 1))
                await writer.drain()
        writer.close()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster(None, Store(lambda key, lane: None), Context(image="i"), Metrics())  # type: ignore[arg-type]
    cluster.stores.operator_id = "me"
    yield cluster
    await cluster.stores.close()


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_strange_store_leaves_the_sweep_of_the_others_alone(
    cluster: Cluster, valkey: Any, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    strange = Strange()
    strange.answer = answer
    async with await asyncio.start_server(strange.serve, "127.0.0.1", 0) as server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}?protocol=2"
        await cluster.stores.documents(Key("theirs", "d"), url)
        await cluster.stores.documents(Key("ours", "d"), valkey.url)
        await cluster.stores.sweep(valkey.url).register("ours", "gone")
        await Controller(cluster).sweep_stores()
        assert await cluster.stores.sweep(valkey.url).registered() == set()
    assert "could not be swept" in caplog.text
    await cluster.stores.forget(Key("theirs", "d"))
