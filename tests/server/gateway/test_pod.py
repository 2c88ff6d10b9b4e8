"""Tenants that come and go, readiness, draining, a store that is away: what happens to a pod as a whole."""

import asyncio
import json

import msgspec
import pytest

from infer_server import ipc
from infer_server.contract.document import CacheShare
from infer_server.contract.report import PodReport
from infer_server.gateway import gateway, request_task


async def condition(check):
    async with asyncio.timeout(20):
        while not await check():  # noqa: ASYNC110 - state of another process
            await asyncio.sleep(0.01)


async def test_readiness_names_what_is_missing(pod, entry):
    await condition(lambda: answers(pod))
    status, text = await pod.get("/readyz")
    assert status == 503
    assert "the model is not loaded" in json.loads(text)["reasons"]
    assert (await pod.get("/healthz"))[0] == 200
    engine = await pod.start_engine()
    await pod.apply(entry())
    await pod.ready()
    assert await pod.get("/readyz") == (200, '{"ready": true, "reasons": []}')
    await engine.close()


async def answers(pod):
    return not pod.running.done() and "the store does not answer" not in pod.process.obstacles()


async def test_no_endpoint_opens_before_the_model_is_there(pod, entry):
    await pod.apply(entry())
    await condition(lambda: answers(pod))
    assert pod.orders == []
    engine = await pod.start_engine()
    await pod.ready()
    assert [order.tenant for order in pod.orders] == [pod.id_of("acme")]
    await engine.close()


async def test_an_endpoint_that_cannot_open_is_named(pod, engine, front, entry):
    pod.fronts[pod.id_of("beta")] = front  # so that no front is started for it
    await pod.apply(entry(), entry("beta", port=20001))
    await condition(lambda: pod_wants(pod, "beta"))
    pod.report_failure(pod.id_of("beta"), "port 20001 is in use")
    await condition(lambda: not_ready_for(pod, "port 20001 is in use"))
    del pod.fronts[pod.id_of("beta")]
    await pod.start_front(pod.id_of("beta"))
    await pod.ready()


async def pod_wants(pod, tenant):
    return any(order.tenant == pod.id_of(tenant) for order in pod.orders)


async def not_ready_for(pod, reason):
    return reason in (await pod.get("/readyz"))[1]


@pytest.mark.parametrize("change", ["suspended", "removed"])
async def test_a_tenant_that_goes_has_its_requests_ended(change, pod, engine, front, entry):
    front.submit(b"1")
    request = await engine.request()
    engine.tokens(request.id, "a")
    await pod.apply(*([entry(suspended=True)] if change == "suspended" else []))
    assert await engine.cancellation() == request.id
    front.submit(b"2")  # before its endpoint is closed
    assert (await front.reply(b"2"))[1]["code"] == f"tenant_{change}"
    engine.finish(request, 1, reason="cancelled")
    op, body = await front.outcome(b"1")
    assert (op, body["code"]) == ("ERR", f"tenant_{change}")
    await condition(lambda: closed(front))
    assert ipc.CloseEndpoint(pod.id_of("acme")) in pod.orders
    assert not pod.process.obstacles()  # whoever is not to be served keeps nothing from being ready


async def closed(front):
    return front.closed


async def test_a_suspended_tenant_comes_back(pod, engine, front, entry):
    await pod.apply(entry(suspended=True))
    await condition(lambda: closed(front))
    await pod.apply(entry())
    again = await pod.front("acme")
    again.submit(b"1")
    engine.finish(await engine.request(), 0)
    assert (await again.outcome(b"1"))[0] == "END"


async def test_a_removed_tenants_series_go(pod, engine, front, entry, monkeypatch):
    monkeypatch.setattr(gateway, "STOP_SECONDS", 0.05)
    front.submit(b"1")
    engine.finish(await engine.request(), 0)
    await front.outcome(b"1")
    assert 'tenant="acme"' in (await pod.get("/metrics"))[1]
    await pod.apply(entry("beta"))
    await condition(lambda: no_series_of(pod, "acme"))


async def no_series_of(pod, tenant):
    return f'tenant="{tenant}"' not in (await pod.get("/metrics"))[1]


async def test_the_engines_snapshot_shows_in_the_metrics(pod, engine, front):
    acme = pod.id_of("acme")
    engine.send(ipc.Snapshot({"steps": 3.0}, [ipc.TenantCache(acme, 10, 4, 7, {"pressure": 1}, 0)]))
    await condition(lambda: shows_steps(pod, 3))
    assert await pod.metric("inferengine_cache_hit_tokens_total", tenant="acme") == 4
    assert await pod.metric("inferengine_kv_tokens", tenant="acme") == 7


async def shows_steps(pod, steps):
    return await pod.metric("inferengine_engine_steps_total") == steps


async def test_draining_lets_requests_finish(pod, engine, front):
    front.submit(b"1")
    request = await engine.request()
    pod.process.stop()
    await condition(lambda: not_ready_for(pod, "draining"))
    front.submit(b"2")
    op, body = await front.reply(b"2")
    assert (op, body["code"], body["retry_ms"] > 0) == ("ERR", "draining", True)
    engine.finish(request, 0)
    assert (await front.outcome(b"1"))[0] == "END"
    assert await pod.running == 0


async def test_what_does_not_finish_while_draining_is_ended_and_settled(pod, engine, front):
    front.submit(b"1")
    request = await engine.request()
    engine.tokens(request.id, "abc")
    assert [(await front.reply(b"1"))[0] for _ in range(2)] == ["ACK", "TOK"]
    pod.process.stop()
    assert await engine.cancellation() == request.id
    engine.finish(request, 3, reason="cancelled")
    op, body = await front.outcome(b"1")
    assert (op, body["code"]) == ("ERR", "draining")
    assert await pod.running == 0
    assert await pod.settled() == 5 + 3


async def test_an_engine_that_does_not_answer_a_cancellation_holds_nothing_up(pod, engine, front, monkeypatch):
    monkeypatch.setattr(request_task, "CANCEL_SECONDS", 0.05)
    front.submit(b"1")
    request = await engine.request()
    engine.tokens(request.id, "ab")
    assert [(await front.reply(b"1"))[0] for _ in range(2)] == ["ACK", "TOK"]
    front.send(ipc.Cancel(b"c", b"1"))
    op, body = await front.outcome(b"1")
    assert (op, body["finish_reason"]) == ("END", "cancelled")
    assert await pod.settled() == 5 + 2
    engine.finish(request, 2, reason="cancelled")  # too late, and harmless
    front.submit(b"2")
    engine.finish(await engine.request(), 0)
    assert (await front.outcome(b"2"))[0] == "END"


async def test_the_gateway_ends_with_its_supervisor(pod, engine, front):
    pod._supervising.cancel()
    pod._control.close()
    assert await pod.running == 1


async def test_leases_of_running_requests_are_renewed_and_lost_ones_end(pod, engine, front):
    front.submit(b"1")
    request = await engine.request()
    engine.tokens(request.id, "ab")
    assert [(await front.reply(b"1"))[0] for _ in range(2)] == ["ACK", "TOK"]
    leases = pod.process._leases
    await leases.renew()
    (held,) = leases._held.values()
    assert held.used().output_tokens == 2
    await pod.quota.settle(held.reservation.tenant, held.reservation.request_id, held.used())  # behind its back
    await leases.renew()
    assert await engine.cancellation() == request.id
    engine.finish(request, 2, reason="cancelled")
    op, body = await front.outcome(b"1")
    assert (op, body["code"]) == ("ERR", "lease_expired")


async def test_a_store_that_is_away_refuses_the_new_and_settles_the_old_when_it_is_back(store, pod, engine, entry):
    await pod.apply(entry())
    front = await pod.front("acme")
    front.submit(b"1")
    request = await engine.request()
    store.pause()
    front.submit(b"2")
    op, body = await front.outcome(b"2")
    assert (op, body["code"], body["retry_ms"] > 0) == ("ERR", "quota_unavailable", True)
    engine.tokens(request.id, "ab")
    engine.finish(request, 2)
    assert (await front.outcome(b"1"))[0] == "END"  # the client is not kept waiting
    await condition(lambda: not_ready_for(pod, "the store does not answer"))
    store.resume()
    assert await pod.settled() == 5 + 2
    await pod.ready()


async def test_a_reservation_whose_answer_was_lost_is_given_back(store, pod, engine, entry):
    await pod.apply(entry(quota={"max_concurrent_requests": 1}))
    front = await pod.front("acme")
    store.pause()  # the call waits in the socket, and takes effect after nobody listens any more
    front.submit(b"1")
    assert (await front.outcome(b"1"))[1]["code"] == "quota_unavailable"
    store.resume()
    assert await pod.settled() == 0
    front.submit(b"2")
    engine.finish(await engine.request(), 0)
    assert (await front.outcome(b"2"))[0] == "END"


# --- what tenants may have of the engine ------------------------------------------------------------------------------
async def share(engine):
    async with asyncio.timeout(20):
        return await engine.shares.get()


async def test_the_engine_is_told_of_shares_that_change_and_of_tenants_that_go(pod, engine, front, entry):
    acme = pod.id_of("acme")
    await pod.apply(msgspec.structs.replace(entry(), cache=CacheShare(min_tokens=10, weight=2.0, insert="Deny")))
    assert (await share(engine)).shares == {
        acme: {
            "min_tokens": 10,
            "max_tokens": None,
            "weight": 2.0,
            "ttl_seconds": None,
            "insert": False,
            "zero_on_free": False,
        }
    }
    await pod.apply(entry())
    assert (await share(engine)).shares[acme]["min_tokens"] == 0
    await pod.apply(msgspec.structs.replace(entry(), uid="another"))
    assert await share(engine) == ipc.DropTenant(acme), "another tenant of the same name"
    await pod.apply()
    assert await share(engine) == ipc.DropTenant(acme)
    assert engine.shares.empty()


async def test_a_new_engine_is_told_of_all_shares(pod, engine, front, entry):
    await pod.apply(msgspec.structs.replace(entry(), cache=CacheShare(max_tokens=100)))
    await share(engine)
    await engine.close()
    second = await pod.start_engine()
    assert (await share(second)).shares[pod.id_of("acme")]["max_tokens"] == 100
    await second.close()


# --- what the operator is told ----------------------------------------------------------------------------------------
async def follows(pod, revision):
    report = await pod.report()
    return report is not None and report.follows("d", revision)


async def has_seen(pod, revision):
    report = await pod.report()
    return report is not None and report.version is not None and report.version.revision == revision


async def test_the_operator_is_told_of_each_document_that_is_served(pod, engine, entry):
    for revision, tenants in enumerate((["acme"], ["acme", "beta"], ["beta"], []), 1):
        await pod.apply(*(entry(name, port=20000 + index) for index, name in enumerate(tenants)))
        await condition(lambda revision=revision: follows(pod, revision))
        assert set(map(pod.id_of, tenants)) <= pod.fronts.keys()
    assert not (await pod.report()).follows("d", 5)
    assert not (await pod.report()).follows("another", 4)


async def test_a_document_that_is_not_served_yet_is_told_with_the_reason(pod, entry):
    await pod.apply(entry())
    await condition(lambda: has_seen(pod, 1))
    assert await tells(pod, "the model is not loaded")
    assert not await follows(pod, 1)
    engine = await pod.start_engine()
    await condition(lambda: follows(pod, 1))
    await engine.close()


async def test_why_a_model_is_not_loaded_is_told_until_one_is(pod, entry):
    await pod.apply(entry())
    broken = await pod.link_engine()
    broken.send(ipc.ModelRefused("/models/x: no such directory"))
    await condition(lambda: tells(pod, "the model is not loaded: /models/x: no such directory"))
    await broken.close()
    assert await tells(pod, "/models/x: no such directory"), "the next engine is only trying"
    engine = await pod.start_engine()
    await condition(lambda: follows(pod, 1))
    await engine.close()


async def test_an_endpoint_that_cannot_open_is_told_to_the_operator(pod, engine, front, entry):
    pod.fronts[pod.id_of("beta")] = front  # so that no front is started for it
    await pod.apply(entry(), entry("beta", port=20001))
    await condition(lambda: pod_wants(pod, "beta"))
    pod.report_failure(pod.id_of("beta"), "port 20001 is in use")
    await condition(lambda: tells(pod, "port 20001 is in use"))
    assert not await follows(pod, 2)
    del pod.fronts[pod.id_of("beta")]
    await pod.start_front(pod.id_of("beta"))
    await condition(lambda: follows(pod, 2))


async def tells(pod, reason):
    report = await pod.report()
    return report is not None and any(reason in obstacle for obstacle in report.obstacles)


async def test_a_report_that_was_lost_comes_again(pod, engine, front, store):
    await condition(lambda: follows(pod, 1))
    store.pause()
    await condition(lambda: says_store_is_away(pod))
    store.resume()
    await pod.documents.report("p", PodReport())  # as if the last had not arrived
    await condition(lambda: follows(pod, 1))


async def says_store_is_away(pod):
    return "the store does not answer" in pod.process.obstacles()
