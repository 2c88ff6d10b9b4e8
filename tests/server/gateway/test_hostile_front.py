"""A front talks to strangers: whatever it sends were it taken over, only its own link and tenant suffer."""

import asyncio
import logging
import socket

import msgspec
import pytest

from infer_server import ipc
from infer_server.gateway.gateway import MAX_FRONT_MESSAGE
from infer_server.gateway.links import Pace, Stream

from .conftest import until


def framed(body: bytes) -> bytes:
    return ipc.LENGTH.pack(len(body)) + body


def packed(*values: object) -> bytes:
    return framed(msgspec.msgpack.encode(values))


NAME = "n" * 100_000

HOSTILE = {
    "an oversized length": ipc.LENGTH.pack(MAX_FRONT_MESSAGE + 1),
    "no MessagePack": framed(b"\xc1"),
    "half a value": framed(b"\x95\xa6submit"),
    "a string that is no UTF-8": framed(b"\x95\xa6submit\xc4\x01c\xc4\x01r\xa1\xff\x81\xa6prompt\xa1a"),
    "too deep": framed(b"\x91" * 100_000),
    "an array without end": framed(b"\xdd\xff\xff\xff\xff"),
    "an unknown message": packed("steal", b"c", b"r"),
    "a message for the engine": packed("tokens", 1, [1, 2]),
    "wrong types": packed("submit", 1, 2, 3, 4),
    "two prompts": packed("submit", b"c", b"r", "u", {"prompt": "a", "token_ids": [1]}),
    "a long unknown field": packed("submit", b"c", b"r", "u", {"prompt": "a", NAME: 1}),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
async def test_only_the_link_that_sends_nonsense_is_closed(pod, engine, entry, caplog, data):
    await pod.apply(entry(), entry("beta", port=20001))
    acme, beta = await pod.front("acme"), await pod.front("beta")
    acme.submit(b"1")
    beta.submit(b"1")
    first, second = await engine.request(), await engine.request()
    with caplog.at_level(logging.INFO):
        acme.send_bytes(data)
        await until(lambda: acme.closed)
    await acme.close()
    assert sum(len(record.getMessage()) for record in caplog.records) < 1000
    assert await engine.cancellation() in (first.id, second.id)
    for request in (first, second):
        engine.finish(request, 0)
    assert (await beta.outcome(b"1"))[0] == "END"
    assert await pod.settled() == 0
    successor = await pod.start_front(pod.id_of("acme"))
    await pod.ready()
    successor.submit(b"1")
    engine.finish(await engine.request(), 0)
    assert (await successor.outcome(b"1"))[0] == "END"


async def test_a_peer_that_does_not_read_is_not_read():
    handled, count, size = [], 200, 1 << 16

    def handle(message):
        handled.append(message)
        stream.send(ipc.Reply(b"c", b"r", "ERR", {"message": "x" * size}))

    stream = Stream(ipc.FrontToGateway, handle, lambda: None, pace=Pace(1e12, 1e12))
    theirs, mine = socket.socketpair()
    await stream.connect(theirs)
    reader, writer = await asyncio.open_connection(sock=mine)
    writer.write(ipc.frame(ipc.Cancel(b"c", b"r" * size)) * count)
    await until(lambda: stream.is_behind)
    num_handled = len(handled)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(handled) == num_handled < count
    received = 0
    while len(handled) < count or stream.is_behind:
        received += len(await reader.read(size))
    assert received > num_handled * size
    stream.close()
    writer.close()


async def test_a_pace_makes_the_peer_wait():
    pace = Pace(rate=100, burst=1000)
    assert pace.take(900) == 0
    assert 0 < pace.take(200) <= 1
    assert 9 < pace.take(1000) <= 11

    handled = []
    stream = Stream(ipc.FrontToGateway, handled.append, lambda: None, pace=Pace(rate=50_000, burst=1))
    theirs, mine = socket.socketpair()
    await stream.connect(theirs)
    for _ in range(10):
        mine.sendall(ipc.frame(ipc.Cancel(b"c", b"r")))
        await asyncio.sleep(0)
    await until(lambda: len(handled) == 10)  # later, but all of it
    stream.close()
    mine.close()
