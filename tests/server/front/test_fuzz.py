"""Whatever an authenticated client sends in whole messages, its front lives and its neighbours are served."""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infer_server import protocol
from infer_server.front.parse import Refusal, Request, parse

from .conftest import Pod

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=10,
)
rids = st.text(max_size=70) | st.binary(max_size=70) | values
headers = st.fixed_dictionaries(
    {"op": st.sampled_from(["REQ", "CANCEL", "HELLO", "PING", "TOK", ""]) | values},
    optional={"rid": rids, "v": st.just(1) | values, "x": values},
)
bodies = st.dictionaries(st.sampled_from(protocol.Generate.__struct_fields__) | st.text(max_size=8), values, max_size=5)
messages = values | headers | bodies
frames = st.one_of(
    messages.map(msgspec.msgpack.encode),
    messages.map(msgspec.json.encode),
    messages.map(msgspec.json.encode).flatmap(lambda data: st.integers(0, len(data)).map(lambda n: data[:n])),
    st.binary(max_size=64),
)
whole_messages = st.lists(frames, min_size=1, max_size=4)


@given(whole_messages)
@settings(max_examples=300, deadline=None)
def test_parsing_never_raises(message: list[bytes]) -> None:
    result = parse(message)
    assert isinstance(result, (Request, Refusal))
    if isinstance(result, Refusal):
        assert result.code in ("bad_frame", "bad_request", "unsupported_version")
        assert result.message


def test_a_front_survives_any_messages(pod: Pod) -> None:
    acme, globex = pod.add("acme", "globex")
    fronts = sorted(pod.fronts())
    client, neighbour, other = pod.client(acme), pod.client(acme), pod.client(globex)
    neighbour.send("REQ", "held", {"prompt": "hold"})
    assert neighbour.receive()[0]["op"] == "ACK"

    @given(st.lists(whole_messages, min_size=1, max_size=10))
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def send(messages: list[list[bytes]]) -> None:
        for message in messages:
            client.raw(*message)
        client.send("PING", "p")
        while client.receive()[0] != {"op": "PONG", "rid": "p"}:
            continue

    send()
    assert neighbour.alive()
    assert other.ask("who") == "globex globex-key"
    neighbour.send("CANCEL", "held")
    assert neighbour.receive()[1]["finish_reason"] == "cancelled"
    assert sorted(pod.fronts()) == fronts
