"""What a client sees, and what the quota store keeps, for each way that a request can go."""

import json

import numpy as np

from infer_server import ipc


async def test_a_request_runs_from_submit_to_settlement(pod, engine, front):
    front.submit(b"1", temperature=0, max_tokens=3, logprobs=0, seed=7)
    request = await engine.request()
    assert await front.reply(b"1") == ("ACK", {})
    assert engine.tokenizer.decode(np.frombuffer(request.token_ids, "<i4").tolist()) == "hello"
    assert request.tenant == pod.id_of("acme")
    assert request.params == {"temperature": 0.0, "max_tokens": 3, "logprobs": 0, "seed": 7}
    engine.tokens(request.id, "a")
    a, b, c = engine.tokenizer.encode("abc")
    assert await front.reply(b"1") == ("TOK", {"seq": 0, "text": "a", "token_ids": [a]})
    engine.tokens(request.id, "bc")
    engine.finish(request, 3, cached_tokens=2)
    assert await front.reply(b"1") == ("TOK", {"seq": 1, "text": "bc", "token_ids": [b, c]})
    usage = {"prompt_tokens": 5, "cached_tokens": 2, "output_tokens": 3}
    assert await front.reply(b"1") == ("END", {"finish_reason": "length", "usage": usage})
    assert await pod.settled() == 8
    labels = {"tenant": "acme"}
    assert await pod.metric("inferengine_requests_total", outcome="length", **labels) == 1
    assert await pod.metric("inferengine_active_requests", **labels) == 0
    assert await pod.metric("inferengine_cached_tokens_total", **labels) == 2
    assert await pod.metric("inferengine_time_to_first_token_seconds_count", **labels) == 1
    assert await pod.metric("inferengine_quota_decisions_total", decision="allowed", **labels) == 1


async def test_an_invalid_request_costs_nothing(pod, engine, front):
    front.submit(b"1", temperature=float("nan"))
    op, body = await front.reply(b"1")
    assert (op, body["code"]) == ("ERR", "invalid_request")
    assert "temperature" in body["message"]
    assert "retry_ms" not in body
    front.submit(b"2", model="other")
    assert (await front.reply(b"2"))[1]["code"] == "unknown_model"
    front.submit(b"3", prompt="x" * 100)
    assert (await front.reply(b"3"))[1]["code"] == "prompt_too_long"
    assert engine.requests.empty()
    assert await pod.settled() == 0
    assert await pod.metric("inferengine_requests_total", tenant="acme", outcome="invalid_request") == 1


async def test_two_connections_may_use_the_same_request_id(pod, engine, front):
    front.submit(b"1", conn=b"a", prompt="first")
    first = await engine.request()
    front.submit(b"1", conn=b"b", prompt="second")
    second = await engine.request()
    engine.tokens(second.id, "2")
    engine.tokens(first.id, "1")
    engine.finish(first, 1)
    engine.finish(second, 1)
    for conn, text in ((b"a", "1"), (b"b", "2")):
        assert (await front.reply(b"1", conn))[0] == "ACK"
        assert (await front.reply(b"1", conn))[1]["text"] == text
        assert (await front.reply(b"1", conn))[0] == "END"


async def test_a_refused_quota_says_which_limit_and_when(pod, engine, entry):
    await pod.apply(entry(quota={"requests_per_minute": 1}))
    front = await pod.front("acme")
    front.submit(b"1")
    engine.finish(await engine.request(), 0)
    await front.outcome(b"1")
    front.submit(b"2")
    op, body = await front.reply(b"2")
    assert (op, body["code"]) == ("ERR", "quota_requests_per_minute")
    assert 0 < body["retry_ms"] <= 60_000
    assert "1 requests per minute" in body["message"]
    assert await pod.metric("inferengine_quota_decisions_total", tenant="acme", decision="requests_per_minute") == 1


async def test_the_end_of_a_request_frees_its_concurrency_before_the_client_knows(pod, engine, entry):
    await pod.apply(entry(quota={"max_concurrent_requests": 1}))
    front = await pod.front("acme")
    for rid in (b"1", b"2", b"3"):
        front.submit(rid)
        engine.finish(await engine.request(), 0)
        assert (await front.outcome(rid))[0] == "END"
    front.submit(b"4")
    await engine.request()
    front.submit(b"5")
    assert (await front.reply(b"5"))[1]["code"] == "quota_concurrency"


async def test_a_cancelled_request_ends_with_what_it_had(pod, engine, front):
    front.submit(b"1")
    request = await engine.request()
    engine.tokens(request.id, "ab")
    assert [(await front.reply(b"1"))[0] for _ in range(2)] == ["ACK", "TOK"]
    front.send(ipc.Cancel(b"c", b"1"))
    assert await engine.cancellation() == request.id
    engine.tokens(request.id, "late")
    engine.finish(request, 6, reason="cancelled")
    op, body = await front.reply(b"1")
    assert (op, body["finish_reason"]) == ("END", "cancelled")
    assert body["usage"] == {"prompt_tokens": 5, "cached_tokens": 0, "output_tokens": 2}
    assert await pod.settled() == 7


async def test_a_cancellation_of_nothing_is_no_error(front, engine):
    front.send(ipc.Cancel(b"c", b"none"))
    front.send(ipc.Gone(b"other", "closed"))
    front.submit(b"1")
    engine.finish(await engine.request(), 0)
    assert (await front.outcome(b"1"))[0] == "END"


async def test_a_client_that_is_gone_gets_no_more_and_pays_what_it_had(pod, engine, front):
    front.submit(b"1", conn=b"gone")
    front.submit(b"2", conn=b"stays")
    first, second = await engine.request(), await engine.request()
    engine.tokens(first.id, "ab")
    assert [(await front.reply(b"1", b"gone"))[0] for _ in range(2)] == ["ACK", "TOK"]
    front.send(ipc.Gone(b"gone", "closed"))
    assert await engine.cancellation() == first.id
    engine.finish(first, 2, reason="cancelled")
    engine.finish(second, 0)
    assert (await front.outcome(b"2", b"stays"))[0] == "END"
    assert await pod.settled() == 7
    assert front.silent(b"1", b"gone")
    assert await pod.metric("inferengine_requests_total", tenant="acme", outcome="client_gone") == 1


async def test_what_was_computed_is_charged_also_without_a_token(pod, engine, front):
    """Else a prompt is free for whoever cancels, leaves or sets a deadline in time, and the next one finds it cached."""
    front.submit(b"1")
    request = await engine.request()
    front.send(ipc.Cancel(b"c", b"1"))
    await engine.cancellation()
    engine.finish(request, 0, reason="cancelled", prompt_tokens=3, cached_tokens=1)
    _, body = await front.outcome(b"1")
    assert body["usage"] == {"prompt_tokens": 3, "cached_tokens": 1, "output_tokens": 0}
    front.submit(b"2")
    engine.finish(await engine.request(), 0, reason="deadline", prompt_tokens=4)
    assert (await front.outcome(b"2"))[1]["finish_reason"] == "deadline"
    front.submit(b"3", conn=b"leaves")
    request = await engine.request()
    front.send(ipc.Gone(b"leaves", "closed"))
    await engine.cancellation()
    engine.finish(request, 0, reason="cancelled", prompt_tokens=5)
    assert await pod.settled() == 3 + 4 + 5


async def test_a_stop_string_ends_the_request_at_the_string(pod, engine, front):
    front.submit(b"1", stop=["END"])
    request = await engine.request()
    assert "stop" not in request.params
    for character in "one ENDtwo":
        engine.tokens(request.id, character)
    assert await engine.cancellation() == request.id
    engine.finish(request, 10, reason="cancelled")
    text, ids = "", []
    while (reply := await front.reply(b"1"))[0] != "END":
        text += reply[1].get("text", "")
        ids += reply[1].get("token_ids", [])
    assert text == "one "
    assert engine.tokenizer.decode(ids) == "one END"
    assert reply[1]["finish_reason"] == "stop"
    assert reply[1]["usage"]["output_tokens"] == 7
    assert await pod.settled() == 5 + 7


async def test_an_engine_error_keeps_its_code_and_retry(pod, engine, front):
    front.submit(b"1")
    request = await engine.request()
    engine.send(ipc.Finished(request.id, "error", 0, 0, 0, 0.0, "queue_full", "the queue is full", 250))
    assert await front.outcome(b"1") == ("ERR", {"code": "queue_full", "message": "the queue is full", "retry_ms": 250})
    assert await pod.settled() == 0


async def test_a_deadline_goes_to_the_engine_less_the_time_that_has_passed(engine, front):
    front.submit(b"1", deadline_ms=5000)
    request = await engine.request()
    assert 0 < request.deadline_ms <= 5000
    engine.finish(request, 0, reason="deadline")
    assert (await front.outcome(b"1"))[1]["finish_reason"] == "deadline"


async def test_a_lost_engine_ends_requests_retriably_and_the_next_one_serves(pod, engine, front):
    front.submit(b"1")
    request = await engine.request()
    engine.tokens(request.id, "abc")
    assert [(await front.reply(b"1"))[0] for _ in range(2)] == ["ACK", "TOK"]
    await engine.close()
    op, body = await front.reply(b"1")
    assert (op, body["code"]) == ("ERR", "engine_unavailable")
    assert body["retry_ms"] > 0
    assert await pod.settled() == 5 + 3
    front.submit(b"2")
    assert (await front.reply(b"2"))[1]["code"] == "engine_unavailable"
    status, text = await pod.get("/readyz")
    assert (status, json.loads(text)["reasons"]) == (503, ["the model is not loaded"])
    successor = await pod.start_engine()
    await pod.ready()
    front.submit(b"3")
    successor.finish(await successor.request(), 0)
    assert (await front.outcome(b"3"))[0] == "END"
    await successor.close()


async def test_tenants_and_salts_have_namespaces_of_their_own(pod, engine, entry):
    await pod.apply(entry(), entry("beta", port=20001))
    await pod.ready()
    namespaces = []
    for tenant, salt in (("acme", None), ("acme", None), ("beta", None), ("acme", "s")):
        pod.fronts[pod.id_of(tenant)].submit(b"1", cache_salt=salt)
        request = await engine.request()
        namespaces.append(request.namespace)
        engine.finish(request, 0)
        await pod.fronts[pod.id_of(tenant)].outcome(b"1")
    assert namespaces[0] == namespaces[1]
    assert len(set(namespaces)) == 3


async def test_a_front_that_dies_takes_its_requests_along(pod, engine, front):
    front.submit(b"1")
    request = await engine.request()
    await front.close()
    assert await engine.cancellation() == request.id
    engine.finish(request, 0, reason="cancelled")
    assert await pod.settled() == 0
    successor = await pod.start_front(pod.id_of("acme"))
    await pod.ready()
    successor.submit(b"1")
    engine.finish(await engine.request(), 0)
    assert (await successor.outcome(b"1"))[0] == "END"


async def test_a_duplicate_id_is_refused_and_the_first_goes_on(engine, front):
    front.submit(b"1")
    request = await engine.request()
    assert (await front.reply(b"1"))[0] == "ACK"
    front.submit(b"1")
    assert (await front.reply(b"1"))[1]["code"] == "duplicate_request"
    engine.finish(request, 0)
    assert (await front.reply(b"1"))[0] == "END"
