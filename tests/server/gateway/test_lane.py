"""A tenant's flood ends in that tenant's own lane."""

import threading

import pytest

from infer_server.gateway import lane as lanes
from infer_server.gateway import request_task
from infer_server.gateway.errors import RefusedError
from infer_server.gateway.lane import Lane, footprint
from infer_server.protocol import Generate, Message

from .conftest import SECONDS


async def test_requests_of_one_tenant_are_bounded_by_number_and_by_bytes():
    lane = Lane()
    for _ in range(lanes.MAX_REQUESTS):
        lane.enter(1)
    with pytest.raises(RefusedError, match="of one tenant") as refusal:
        lane.enter(1)
    assert (refusal.value.code, refusal.value.retry_ms) == ("overloaded", 500)
    lane.leave(1)
    with pytest.raises(RefusedError, match="64 MiB"):
        lane.enter(lanes.MAX_BYTES)
    lane.enter(1)


def test_a_request_weighs_what_it_takes_in_memory():
    assert footprint(Generate(prompt="é" * 1000)) > 1000
    assert footprint(Generate(token_ids=[300] * 1000)) > 32_000
    assert footprint(Generate(messages=[Message("", "")] * 1000)) > 80_000
    assert footprint(Generate(prompt="", stop_token_ids=[300] * 1000)) > 32_000


async def test_prompts_that_take_long_hold_up_nobody_else(pod, engine, entry, monkeypatch):
    await pod.apply(entry(), entry("beta", port=20001))
    acme, beta = await pod.front("acme"), await pod.front("beta")
    prepare, go_on = request_task.prepare, threading.Event()

    def slowly(request, *others):
        if request.prompt == "slow":
            go_on.wait(SECONDS)
        return prepare(request, *others)

    monkeypatch.setattr(request_task, "prepare", slowly)
    try:
        for number in range(20):
            acme.submit(b"%d" % number, prompt="slow")
        beta.submit(b"1")
        engine.finish(await engine.request(), 0)
        assert (await beta.outcome(b"1"))[0] == "END"
        acme.send_bytes(b"\xff" * 8)  # and whoever leaves is not prepared any more
    finally:
        go_on.set()
    assert await pod.settled() == 0


async def test_a_flood_beyond_the_rate_is_refused_without_asking_the_store(pod, engine, entry):
    await pod.apply(entry(quota={"requests_per_minute": 1}))
    front = await pod.front("acme")
    front.submit(b"first")
    engine.finish(await engine.request(), 0)
    await front.outcome(b"first")
    front.submit(b"second")
    _, denied = await front.outcome(b"second")
    for number in range(100):
        front.submit(b"%d" % number)
        assert await front.outcome(b"%d" % number) == ("ERR", denied)
    assert denied["code"] == "quota_requests_per_minute"
    assert denied["retry_ms"] > 0
    asked = await pod.metric("inferengine_quota_decisions_total", tenant="acme", decision="requests_per_minute")
    assert asked < 50
