"""A store that is no Redis: it never comes to an end of its keys. Who asks it does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest

from infer_server.contract.store import StoreUnavailableError
from infer_server.contract.sweep import StoreSweep

PAGE = b"*2\r\n$1\r\n7\r\n*0\r\n"
"""an answer to SCAN without keys: go on from cursor 7"""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while request := await reader.read(65536):
            number = request.count(b"SETINFO") or 1
            writer.write(PAGE if b"SCAN" in request else b"+OK\r\n" * number)
            await writer.drain()
    writer.close()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}?protocol=2"


async def test_keys_without_end(url: str) -> None:
    seconds = itertools.count()
    sweep = StoreSweep(url, "me", clock=lambda: next(seconds))
    try:
        async with asyncio.timeout(30):
            with pytest.raises(StoreUnavailableError, match="does not come to an end"):
                await sweep.sweep(dict)
    finally:
        await sweep.close()
