"""The client for asyncio, against real fronts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from infer_server.client import (
    AsyncClient,
    AuthenticationFailed,
    ConnectionLost,
    InferError,
    Rejected,
    Retryable,
    Timeout,
)

from ..front.conftest import Pod, eventually

Credentials = Callable[..., Path]


async def test_generate_and_stream(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    async with AsyncClient.from_credentials(credentials(acme)) as client:
        assert (await client.generate("count 3", timeout=20)).text == "0 1 2 "
        stream = client.stream("count 3")
        assert [delta.text async for delta in stream] == ["0 ", "1 ", "2 "]
        assert stream.finish_reason == "stop"
        assert stream.usage is not None


async def test_a_hundred_requests_at_once(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    async with AsyncClient.from_credentials(credentials(acme)) as client:
        outs = await asyncio.gather(*(client.generate(f"count {n}") for n in range(1, 101)))
    assert [out.token_ids for out in outs] == [list(range(n)) for n in range(1, 101)]


async def test_leaving_early_and_a_cancelled_task_cancel_the_request(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    async with AsyncClient.from_credentials(credentials(acme)) as client:
        async for _ in client.stream("tick 100000"):
            break
        await asyncio.to_thread(eventually, lambda: len(pod.events("cancel")) == 1, "break cancels")
        task = asyncio.create_task(client.generate("hold"))
        await client.generate("count 1")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(eventually, lambda: len(pod.events("cancel")) == 2, "the request is cancelled")


async def test_time_limits_and_lost_connections(pod: Pod, credentials: Credentials) -> None:
    acme, globex = pod.add("acme", "globex")
    async with AsyncClient.from_credentials(credentials(acme)) as client:
        with pytest.raises(Timeout):
            await client.generate("hold", timeout=0.2)
        stream = client.stream("hold")
        await client.generate("count 1")
        for front in pod.fronts():
            os.kill(front, signal.SIGKILL)
        with pytest.raises(ConnectionLost):
            await anext(stream)
        assert (await client.generate("count 1")).text == "0 "
    async with AsyncClient.from_credentials(credentials(acme, globex.keys["globex-key"])) as client:
        with pytest.raises(AuthenticationFailed):
            await client.generate("who")


@pytest.mark.parametrize(
    ("code", "kind", "retry_ms"),
    [("quota_exceeded", Rejected, None), ("queue_full", Retryable, 50), ("internal", InferError, None)],
)
async def test_errors_are_those_of_the_client_for_threads(
    pod: Pod, credentials: Credentials, code: str, kind: type[InferError], retry_ms: int | None
) -> None:
    (acme,) = pod.add("acme")
    async with AsyncClient.from_credentials(credentials(acme)) as client:
        with pytest.raises(InferError) as caught:
            await client.generate(f"refuse {code}")
        error = caught.value
        assert (type(error), error.code, error.message, error.retry_ms) == (kind, code, "as you asked", retry_ms)
        with pytest.raises(Rejected, match="exactly one of prompt"):
            await client.generate()
        assert (await client.generate("count 1")).text == "0 "


async def test_a_refused_key_is_tried_anew_with_the_next_call(pod: Pod, credentials: Credentials) -> None:
    acme, globex = pod.add("acme", "globex")
    key = globex.keys["globex-key"]
    async with AsyncClient.from_credentials(credentials(acme, key)) as client:
        with pytest.raises(AuthenticationFailed):
            await client.generate("who")
        acme.keys["late"] = key
        pod.publish()
        async with asyncio.timeout(20):
            while True:
                try:
                    answer = await client.generate("who")
                except AuthenticationFailed:
                    continue
                break
    assert answer.text == "acme late"


async def test_no_server_there_and_one_that_comes_later(pod: Pod, credentials: Credentials) -> None:
    (acme,) = pod.add("acme")
    path = credentials(acme)
    pod.stop()
    async with AsyncClient.from_credentials(path, connect_timeout=0.3) as client:
        with pytest.raises(ConnectionLost, match=r"within 0\.3 s") as caught:
            await client.generate("count 1")
        assert caught.value.retry_ms is not None
    async with AsyncClient.from_credentials(path, connect_timeout=60) as client:
        waiting = asyncio.create_task(client.generate("count 1"))
        pod.start()
        assert (await waiting).text == "0 "
