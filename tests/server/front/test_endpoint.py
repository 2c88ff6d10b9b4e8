"""What clients see of an endpoint, through the real supervisor and forked fronts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from infer_server import protocol
from infer_server.front import limits

from .conftest import Key, Pod, Tenant, eventually

EXAMPLE = Path(__file__).parents[3] / "examples" / "six_lines.py"


def refused(pod: Pod, tenant: Tenant, key: Key) -> bool:
    """Whether the handshake ends in a refusal."""
    sock = pod.context.socket(zmq.DEALER)
    pod.sockets.append(sock)
    monitor = sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    sock.curve_serverkey = pod.server_key.public.encode()
    sock.curve_publickey, sock.curve_secretkey = key.public.encode(), key.secret.encode()
    sock.connect(f"tcp://127.0.0.1:{tenant.port}")
    assert monitor.poll(20_000), "neither let in nor refused"
    event = recv_monitor_message(monitor)["event"]
    sock.disable_monitor()
    monitor.close()
    return event == zmq.EVENT_HANDSHAKE_FAILED_AUTH


def test_six_lines_of_plain_pyzmq_are_a_client(pod: Pod, tmp_path: Path) -> None:
    (acme,) = pod.add("acme")
    path = tmp_path / "acme.json"
    key = acme.keys["acme-key"]
    fields = {"endpoint": f"tcp://127.0.0.1:{acme.port}", "serverPublicKey": pod.server_key.public}
    path.write_text(json.dumps({**fields, "clientPublicKey": key.public, "clientSecretKey": key.secret}))
    argv = [sys.executable, str(EXAMPLE), str(path)]
    assert subprocess.run([*argv, "count 3"], capture_output=True, text=True, timeout=60).stdout == "0 1 2 "
    failed = subprocess.run([*argv, "refuse bad_luck"], capture_output=True, text=True, timeout=60)
    assert (failed.returncode, failed.stderr) == (1, "as you asked\n")


@pytest.mark.parametrize(
    ("encoding", "rid"), [("json", "a"), ("json", "é" * 32), ("msgpack", "a"), ("msgpack", b"\xff" * 16)]
)
def test_answers_come_in_the_encoding_and_with_the_id_of_the_request(
    pod: Pod, encoding: protocol.Encoding, rid: str | bytes
) -> None:
    (acme,) = pod.add("acme")
    client = pod.client(acme, encoding=encoding)
    client.send("REQ", rid, {"prompt": "count 2"})
    messages = client.until_over(rid)
    assert [header["op"] for header, _ in messages] == ["ACK", "TOK", "TOK", "END"]
    assert all(header["rid"] == rid for header, _ in messages)
    assert messages[-1][1]["usage"] == {"prompt_tokens": 3, "cached_tokens": 1, "output_tokens": 2}
    client.send("PING", rid)
    assert client.socket.recv_multipart()[0] == protocol.encode({"op": "PONG", "rid": rid}, encoding)


def test_hello_tells_version_limits_and_boot(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    client = pod.client(acme)
    client.send("HELLO", body={"versions": [1, 2]})
    header, hello = client.receive()
    assert header == {"op": "HELLO"}
    assert hello["version"] == 1
    assert hello["limits"]["max_frame"] == protocol.MAX_FRAME
    probing = pod.socket(acme, probe_router=1)
    assert json.loads(probing.recv_multipart()[1])["boot"] == hello["boot"]


def test_only_the_tenants_own_keys_are_let_in(pod: Pod) -> None:
    acme, globex = pod.add("acme", "globex")
    assert not refused(pod, acme, acme.keys["acme-key"])
    assert refused(pod, acme, globex.keys["globex-key"])
    assert refused(pod, globex, acme.keys["acme-key"])
    assert refused(pod, acme, Key.new())
    forged = Key(acme.keys["acme-key"].public, Key.new().secret)
    client = pod.client(acme, forged)
    client.send("PING")
    assert not client.socket.poll(500), "someone who only knows the public key is answered"


def test_the_gateway_learns_tenant_and_user_from_the_endpoint_and_key(pod: Pod) -> None:
    acme, globex = pod.add("acme", "globex")
    acme.keys["second"] = second = Key.new()
    pod.publish()
    eventually(lambda: not refused(pod, acme, second), "the second key is let in")
    assert pod.client(acme).ask("who") == "acme acme-key"
    assert pod.client(acme, second).ask("who") == "acme second"
    assert pod.client(globex).ask("who") == "globex globex-key"


def encoded(value: object) -> bytes:
    return protocol.encode(value, "json")


REQ = encoded({"op": "REQ", "rid": "bad"})

MALFORMED = [
    ([b"hello"], "bad_frame", "header"),
    ([b"{", b"{}"], "bad_frame", "header"),
    ([b"\xc1", b""], "bad_frame", "malformed"),
    ([b"[1]", b"{}"], "bad_frame", "object"),
    ([b"", b"", b""], "bad_frame", "more than 2"),
    ([encoded({"op": "PING"})] * 50, "bad_frame", "more than 2"),
    ([encoded({"op": "EAT", "rid": "bad"}), b"{}"], "bad_frame", "'EAT'"),
    ([encoded({"op": "PING", "extra": 1}), b"{}"], "bad_frame", "extra"),
    ([encoded({"op": "PING", "rid": 7}), b"{}"], "bad_frame", "$.rid"),
    ([encoded({"op": "PING", "rid": ""}), b"{}"], "bad_frame", "1 to 64 bytes"),
    ([encoded({"op": "PING", "rid": "é" * 33}), b"{}"], "bad_frame", "got 66"),
    ([encoded({"op": "PING", "v": 2}), b"{}"], "unsupported_version", "version 1"),
    ([encoded({"op": "HELLO"}), encoded({"versions": [2, 3]})], "unsupported_version", "version 1"),
    ([encoded({"op": "HELLO"}), b"[]"], "bad_request", "body"),
    ([encoded({"op": "CANCEL"}), b"{}"], "bad_request", "$.rid"),
    ([encoded({"op": "REQ"}), b"{}"], "bad_request", "$.rid"),
    ([REQ], "bad_frame", "header, body"),
    ([REQ, b""], "bad_request", "body"),
    ([REQ, b"{}"], "bad_request", "exactly one of prompt"),
    ([REQ, encoded({"prompt": "x", "token_ids": [1]})], "bad_request", "got prompt, token_ids"),
    ([REQ, encoded({"prompt": "x", "max_tokens": "many"})], "bad_request", "$.max_tokens"),
    ([REQ, encoded({"prompt": "x", "colour": "red"})], "bad_request", "colour"),
    ([REQ, encoded({"messages": [{"role": "user"}]})], "bad_request", "$.messages[0]"),
    ([REQ, encoded({"prompt": "x", "deadline_ms": 0})], "bad_request", "$.deadline_ms"),
    ([REQ, encoded({"prompt": "x", "cache_salt": "s" * 129})], "bad_request", "$.cache_salt"),
    ([REQ, b'{"prompt": "\\ud800"}'], "bad_request", "body"),
    ([REQ, b'{"prompt": "\xff"}'], "bad_request", "body"),
    ([REQ, b'{"prompt": "x", "seed": 123456789012345678901234567890}'], "bad_request", "64 bits"),
    ([REQ, b'{"prompt":' + b"[" * 100_000], "bad_request", "body"),
    ([REQ, b'{"stop":' + b"[" * 100_000], "bad_request", "body"),
]


def test_malformed_messages_are_answered_and_disturb_nothing(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    fronts = pod.fronts()
    client = pod.client(acme)
    client.send("REQ", "held", {"prompt": "hold"})
    assert client.receive()[0]["op"] == "ACK"
    for frames, code, words in MALFORMED:
        client.raw(*frames)
        header, err = client.receive()
        assert (header["op"], err["code"]) == ("ERR", code), frames
        assert words in err["message"], (frames, err)
        if frames[0] == REQ:
            assert header["rid"] == "bad"
    client.send("CANCEL", "held")
    assert client.receive()[1]["finish_reason"] == "cancelled"
    assert client.ask("count 2") == "0 1 "
    assert pod.fronts() == fronts


def test_a_frame_over_the_limit_ends_that_connection_alone(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    client, neighbour = pod.client(acme), pod.client(acme)
    assert client.alive()
    assert neighbour.alive()
    largest = protocol.encode({"prompt": "count 1 " + " " * (protocol.MAX_FRAME - 30)}, "json")
    assert len(largest) < protocol.MAX_FRAME
    client.raw(REQ, largest)
    assert client.until_over("bad")[-1][0]["op"] == "END"
    neighbour.send("REQ", "held", {"prompt": "hold"})
    assert neighbour.receive()[0]["op"] == "ACK"
    client.send("REQ", "lost", {"prompt": "hold"})
    assert client.receive()[0]["op"] == "ACK"
    client.raw(REQ, b" " * (protocol.MAX_FRAME + 100))
    eventually(lambda: pod.events("gone", reason="disconnected"), "that connection is closed")
    neighbour.send("CANCEL", "held")
    assert neighbour.receive()[1]["finish_reason"] == "cancelled"
    assert client.ask("count 1", "again") == "0 ", "libzmq connects again"


def test_a_duplicate_id_leaves_the_running_request_alone(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    client = pod.client(acme, encoding="msgpack")
    client.send("REQ", "one", {"prompt": "hold"})
    assert client.receive()[0]["op"] == "ACK"
    client.send("REQ", b"one", {"prompt": "count 1"})
    header, err = client.receive()
    assert (header["rid"], err["code"]) == (b"one", "duplicate_request")
    client.send("CANCEL", "one")
    header, end = client.receive()
    assert (header["op"], header["rid"], end["finish_reason"]) == ("END", "one", "cancelled")
    assert client.ask("count 1", "one") == "0 ", "an id may be used again after its END"


def test_the_same_id_from_two_clients_never_crosses(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    acme.keys["second"] = Key.new()
    pod.publish()
    eventually(lambda: not refused(pod, acme, acme.keys["second"]), "the second key is let in")
    first, second = pod.client(acme), pod.client(acme, acme.keys["second"])
    for client, prompt in ((first, "count 200"), (second, "who"), (first, "who"), (second, "count 100")):
        client.send("REQ", {"count": "a", "who": "b"}[prompt.split()[0]], {"prompt": prompt})
    for client, tokens, who in ((first, 200, "acme acme-key"), (second, 100, "acme second")):
        texts = {"a": "", "b": ""}
        ended = 0
        while ended < 2:
            header, body = client.receive()
            texts[header["rid"]] += body.get("text", "")
            ended += header["op"] == "END"
        assert texts == {"a": "".join(f"{n} " for n in range(tokens)), "b": who}


def test_a_connection_has_so_many_requests_at_a_time_and_no_more(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    client = pod.client(acme)
    for number in range(limits.MAX_LIVE_REQUESTS):
        client.send("REQ", str(number), {"prompt": "hold"})
    for _ in range(limits.MAX_LIVE_REQUESTS):
        assert client.receive()[0]["op"] == "ACK"
    client.send("REQ", "more", {"prompt": "hold"})
    _, err = client.receive()
    assert (err["code"], err["retry_ms"]) == ("too_many_requests", limits.RETRY_MS)
    client.send("CANCEL", "0")
    assert client.receive()[0]["rid"] == "0"
    assert client.ask("count 1", "more") == "0 "


def test_a_flood_of_messages_is_refused_and_neighbours_are_served(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    flooder, neighbour = pod.client(acme), pod.client(acme)
    flooder.socket.sndhwm = 0
    for _ in range(10):
        for _ in range(1000):
            flooder.send("PING")
        assert neighbour.alive()
    ops = [flooder.receive() for _ in range(10_000)]
    refusals = [body for header, body in ops if header["op"] == "ERR"]
    assert {header["op"] for header, _ in ops} == {"PONG", "ERR"}
    assert {body["code"] for body in refusals} == {"rate_limited"}
    eventually(
        lambda: (flooder.send("PING"), flooder.receive()[0]["op"] == "PONG")[1], "served again when it calms down"
    )


def test_empty_messages_count_as_messages(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    client = pod.client(acme)
    client.socket.sndhwm = 0
    for _ in range(30_000):
        client.raw(b"")
    client.send("PING", "last")
    hellos = 0
    while (header := client.receive()[0])["op"] == "HELLO":
        hellos += 1
    assert header["rid"] == "last"
    assert hellos < 29_000, "the others were more than are allowed"


def test_a_client_that_goes_away_has_its_requests_cancelled(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    client, neighbour = pod.client(acme), pod.client(acme)
    for each in (client, neighbour):
        each.send("REQ", "r", {"prompt": "hold"})
        assert each.receive()[0]["op"] == "ACK"
    client.socket.close()
    eventually(lambda: pod.events("gone", tenant="acme"), "the gateway is told")
    assert neighbour.alive()
    neighbour.send("CANCEL", "r")
    assert neighbour.receive()[1]["finish_reason"] == "cancelled"
    assert len(pod.events("gone")) == 1


def test_a_slow_reader_is_dropped_without_hurting_others(pod: Pod) -> None:
    acme, globex = pod.add("acme", "globex")
    slow = pod.socket(acme, rcvhwm=1, rcvbuf=4096)
    slow.send_multipart([encoded({"op": "REQ", "rid": "r"}), encoded({"prompt": "flood 100000"})])
    fast, other = pod.client(acme), pod.client(globex)
    eventually(lambda: fast.ask("count 100") and pod.events("gone", tenant="acme"), "the slow reader is dropped", 60)
    assert "does not read" in pod.events("gone")[0]["reason"]
    assert len(pod.events("gone")) == 1
    assert fast.ask("count 300") == "".join(f"{n} " for n in range(300))
    assert other.ask("who") == "globex globex-key"
