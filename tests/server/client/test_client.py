"""The client for threads, against real fronts."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import infer_server.client
from infer_server.client import (
    AuthenticationFailed,
    Client,
    ConnectionLost,
    InferError,
    Rejected,
    Retryable,
    Timeout,
)
from infer_server.protocol import MAX_FRAME

from ..front.conftest import Key, Pod, eventually, free_port

Credentials = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> object:
    yield
    gc.collect()
    eventually(lambda: not any(t.name == "infer-client" for t in threading.enumerate()), "client threads end")


def test_generate_returns_the_whole_answer(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    with Client.from_credentials(credentials(acme)) as client:
        out = client.generate("count 3", timeout=20)
    assert (out.text, out.token_ids, out.finish_reason) == ("0 1 2 ", [0, 1, 2], "stop")
    assert (out.usage.prompt_tokens, out.usage.cached_tokens, out.usage.output_tokens) == (3, 1, 2)
    assert out.logprobs is None
    assert out.ttft_ms is not None


def test_every_parameter_reaches_the_server(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    given = {
        "model": "m",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "seed": 7,
        "stop": ["a", "b"],
        "stop_token_ids": [1],
        "ignore_eos": True,
        "logprobs": 3,
        "deadline_ms": 60_000,
        "cache_salt": "s",
    }
    with Client.from_credentials(credentials(acme)) as client:
        told = json.loads(client.generate("tell", **given).text)  # type: ignore[arg-type]
        assert told == {"prompt": "tell", **given}
        messages = [{"role": "user", "content": "hi"}]
        assert client.generate(messages=messages).text == "acme acme-key"
        assert client.generate(token_ids=[1, 2]).text == "acme acme-key"


def test_a_stream_gives_deltas_then_how_it_ended(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    with Client.from_credentials(credentials(acme)) as client:
        stream = client.stream("count 50")
        assert [delta.text for delta in stream] == [f"{n} " for n in range(50)]
        assert stream.finish_reason == "stop"
        assert stream.usage is not None
        assert list(stream) == []


def test_leaving_a_stream_early_cancels_it(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    with Client.from_credentials(credentials(acme)) as client:
        for _ in client.stream("tick 100000"):
            break
        eventually(lambda: len(pod.events("cancel")) == 1, "break cancels")
        with client.stream("tick 100000") as stream:
            next(stream)
        eventually(lambda: len(pod.events("cancel")) == 2, "leaving the block cancels")
        stream = client.stream("tick 100000")
        next(stream)
        stream.close()
        eventually(lambda: len(pod.events("cancel")) == 3, "close cancels")
        assert list(stream) == []
        assert client.generate("count 1").text == "0 "


@pytest.mark.parametrize(
    ("code", "kind", "retry_ms"),
    [("quota_exceeded", Rejected, None), ("queue_full", Retryable, 50), ("internal", InferError, None)],
)
def test_errors_are_sorted_by_what_to_do(
    pod: Pod, credentials: Credentials, code: str, kind: type[InferError], retry_ms: int | None
) -> None:
    (acme,) = pod.add("acme")
    with Client.from_credentials(credentials(acme)) as client:
        with pytest.raises(InferError, match="as you asked") as caught:
            client.generate(f"refuse {code}")
        assert type(caught.value) is kind
        assert (caught.value.code, caught.value.retry_ms) == (code, retry_ms)


def test_a_wrong_request_is_refused_before_anything_is_sent() -> None:
    key = Key.new()
    client = Client(
        endpoint="tcp://127.0.0.1:1",
        server_public_key=key.public,
        client_public_key=key.public,
        client_secret_key=key.secret,
    )
    with pytest.raises(Rejected, match="exactly one of prompt"):
        client.generate()
    with pytest.raises(Rejected, match=r"`\$\.max_tokens`"):
        client.generate("x", max_tokens="many")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unknown parameter colour; known are messages"):
        client.stream("x", colour="red")  # type: ignore[call-arg]
    with pytest.raises(Rejected, match="too_large"):
        client.generate("x" * MAX_FRAME)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate("x")


def test_a_refused_key_is_told_and_tried_anew_with_the_next_call(pod: Pod, credentials: Credentials) -> None:
    acme, globex = pod.add("acme", "globex")
    key = globex.keys["globex-key"]
    with Client.from_credentials(credentials(acme, key)) as client:
        for _ in range(2):
            with pytest.raises(AuthenticationFailed, match="refuses this client's key"):
                client.generate("who")
        acme.keys["late"] = key
        pod.publish()

        def let_in() -> bool:
            try:
                return client.generate("who").text == "acme late"
            except AuthenticationFailed:
                return False

        eventually(let_in, "the key is accepted later")
        del acme.keys["late"]
        stream = client.stream("hold")
        eventually(lambda: client.generate("who"), "the connection is up")
        pod.publish()
        with pytest.raises(ConnectionLost):
            next(stream)
        with pytest.raises(AuthenticationFailed):
            client.generate("who")


def test_a_tenant_with_a_key_pair_of_its_own(pod: Pod, credentials: Credentials, tmp_path: Path) -> None:
    """What it is given lacks the client keys; the public one follows from the secret one."""
    (acme,) = pod.add("acme")
    file, secret = credentials(acme), tmp_path / "acme.key"
    fields = json.loads(file.read_bytes())
    secret.write_text(fields.pop("clientSecretKey") + "\n")
    del fields["clientPublicKey"]
    file.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"acme.json: has no client keys, .*: give the file with its secret key"):
        Client.from_credentials(file)
    with Client.from_credentials(file, secret_key_file=secret) as client:
        assert client.generate("count 1").text == "0 "
    secret.write_text("#" * 40)  # more than 32 bits in five characters
    with pytest.raises(ValueError, match=r"acme.key: must hold a CURVE secret key in Z85, 40 characters"):
        Client.from_credentials(file, secret_key_file=secret)


def test_a_killed_front_fails_what_was_under_way_and_the_next_call_works(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    with Client.from_credentials(credentials(acme)) as client:
        streams = [client.stream("hold") for _ in range(5)]
        assert client.generate("count 1").text == "0 "
        os.kill(pod.fronts()[0], signal.SIGKILL)
        for stream in streams:
            with pytest.raises(ConnectionLost) as caught:
                next(stream)
            assert caught.value.retry_ms is not None
        assert client.generate("count 1").text == "0 "


def test_a_silent_server_is_noticed(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    front = pod.fronts()[0]
    with Client.from_credentials(credentials(acme), silence_timeout=0.6) as client:
        stream = client.stream("hold")
        assert client.generate("count 1").text == "0 "
        os.kill(front, signal.SIGSTOP)
        with pytest.raises(ConnectionLost, match=r"not answered for 0\.6 s"):
            next(stream)
        os.kill(front, signal.SIGCONT)
        assert client.generate("count 1").text == "0 "


def test_a_long_computation_is_no_silence(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    with (
        Client.from_credentials(credentials(acme), silence_timeout=2.0) as client,
        client.stream("hold", timeout=5.0) as stream,
        pytest.raises(Timeout, match=r"not within 5 s"),
    ):
        next(stream)


def test_a_time_limit_cancels(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    with Client.from_credentials(credentials(acme)) as client:
        client.generate("count 1")
        with pytest.raises(Timeout):
            client.generate("hold", timeout=0.2)
        eventually(lambda: pod.events("cancel"), "the request is cancelled")
        with pytest.raises(TimeoutError):
            client.generate("hold", timeout=0.0)


def test_no_server_there(tmp_path: Path, pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    with (
        Client.from_credentials(credentials(acme, server_key=Key.new()), connect_timeout=1.0) as client,
        pytest.raises(ConnectionLost, match=r"within 1 s.*serverPublicKey"),
    ):
        client.generate("who")
    acme.port = free_port()
    with (
        Client.from_credentials(credentials(acme), connect_timeout=0.3) as client,
        pytest.raises(ConnectionLost, match=r"within 0\.3 s: nothing answers there"),
    ):
        client.generate("who")


def test_a_client_put_off_by_a_stopping_server_is_served_by_the_next(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    with (
        Client.from_credentials(credentials(acme)) as early,
        Client.from_credentials(credentials(acme), connect_timeout=60.0) as late,
        ThreadPoolExecutor(1) as pool,
    ):
        running = early.stream("hold")
        early.generate("count 1")
        assert pod.process is not None
        pod.process.terminate()
        eventually(lambda: "stopping" in (pod.folder / "log").read_text(), "the end begins")
        answer = pool.submit(late.generate, "count 2", timeout=60)
        assert early.generate("count 1").text == "0 "
        running.close()
        assert pod.process.wait(20) == 0
        pod.start()
        assert answer.result().text == "0 1 "
        assert early.generate("count 1").text == "0 "


def test_many_threads_share_one_client(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    with Client.from_credentials(credentials(acme)) as client, ThreadPoolExecutor(32) as pool:
        lengths = [n % 40 for n in range(1, 300)]
        texts = pool.map(lambda n: client.generate(f"count {n}").text, lengths)
        assert list(texts) == ["".join(f"{i} " for i in range(n)) for n in lengths]


def test_closing_fails_what_is_under_way(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    client = Client.from_credentials(credentials(acme))
    stream = client.stream("hold")
    client.close()
    client.close()
    with pytest.raises(ConnectionLost, match="closed"):
        next(stream)


def test_a_forgotten_client_is_closed_but_not_under_its_stream(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    stream = Client.from_credentials(credentials(acme)).stream("count 5")
    gc.collect()
    assert len(list(stream)) == 5


def test_credentials_that_are_wrong_name_the_file_and_the_field(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for content in (b"# a title", b"\xff\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"c\.json: not a credentials file, which is JSON: "):
            Client.from_credentials(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"c\.json: .*`endpoint`"):
        Client.from_credentials(path)
    good = {"endpoint": "tcp://h:1", **dict.fromkeys(("serverPublicKey", "clientPublicKey"), Key.new().public)}
    path.write_text(json.dumps({**good, "clientSecretKey": "short"}))
    with pytest.raises(ValueError, match=r"c\.json: client_secret_key: must be a CURVE key"):
        Client.from_credentials(path)
    path.write_text(json.dumps({**good, "clientSecretKey": Key.new().secret, "endpoint": "http://h"}))
    with pytest.raises(ValueError, match="endpoint: got 'http://h'; must be tcp"):
        Client.from_credentials(path)


def test_the_public_names_are_all_there() -> None:
    module = infer_server.client
    public = {name for name, value in vars(module).items() if not name.startswith("_") and isinstance(value, type)}
    assert public == set(module.__all__)
