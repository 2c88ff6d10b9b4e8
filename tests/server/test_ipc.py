import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_server import ipc

decoder = msgspec.msgpack.Decoder(ipc.EngineToGateway)


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=200), max_size=20), st.integers(1, 64))
def test_messages_survive_any_cut_of_the_stream(bodies: list[list[int]], chunk: int) -> None:
    messages = [ipc.Tokens(id=n, token_ids=ids) for n, ids in enumerate(bodies)]
    stream = b"".join(ipc.frame(message) for message in messages)
    deframer = ipc.Deframer()
    received = [
        decoder.decode(body)
        for start in range(0, len(stream), chunk)
        for body in deframer.feed(stream[start : start + chunk])
    ]
    assert received == messages


def test_a_long_message_may_come_byte_by_byte() -> None:
    """Were all of it copied with each byte, this would take an hour, and a gateway as long."""
    frame = ipc.frame(ipc.Tokens(id=1, token_ids=[1] * (1 << 20)))
    deframer, received = ipc.Deframer(), []
    for start in range(len(frame)):
        received += deframer.feed(frame[start : start + 1])
    assert received == [frame[ipc.LENGTH.size :]]


def test_an_oversized_length_is_refused_before_its_body_is_kept() -> None:
    with pytest.raises(ipc.FramingError, match="at most"):
        list(ipc.Deframer().feed(ipc.LENGTH.pack(ipc.MAX_MESSAGE + 1)))
    with pytest.raises(ipc.FramingError, match="at most 10 "):
        list(ipc.Deframer(max_message=10).feed(ipc.LENGTH.pack(11)))


@pytest.mark.parametrize(
    "message",
    [
        ipc.EngineReady("m", "/d", "r", "kv", 10, 5, 100, 32),
        ipc.Finished(7, "error", 1, 2, 3, 0.5, "queue_full", "full", 250),
        ipc.Snapshot({"running": 1.0}, [ipc.TenantCache("a/b/c", 1, 2, 3, {"pressure": 4}, 0)]),
        ipc.Tokens(3, [1, 2], [(1, -0.5, [(1, -0.5)]), (2, -1.0, [])]),
    ],
)
def test_each_engine_message_is_told_apart_by_its_tag(message: msgspec.Struct) -> None:
    (body,) = ipc.Deframer().feed(ipc.frame(message))
    assert decoder.decode(body) == message
