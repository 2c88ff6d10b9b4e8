"""What comes and goes while clients stream: requests, tenants, processes, the pod itself."""

import itertools

import pytest

from infer_server.client import ConnectionLost, Rejected, Retryable

LONG = {"max_tokens": 4000, "temperature": 0, "ignore_eos": True}


def nothing_live(pod, tenant):
    return pod.until(lambda: (usage := pod.usage(tenant)).live == 0 and usage)


def test_a_cancelled_stream_frees_everything_and_is_charged_what_it_had(pod):
    before = pod.usage("acme").day.used
    with pod.client("acme") as acme:
        with acme.stream("hello", **LONG) as stream:
            received = sum(len(delta.token_ids) for delta in itertools.islice(stream, 5))
        usage = nothing_live(pod, "acme")
    assert usage.day.reserved == 0
    assert before + received < usage.day.used < before + LONG["max_tokens"]
    pod.until(lambda: pod.metric("inferengine_engine_running_requests") == 0)
    pod.until(lambda: pod.metric("inferengine_requests_total", tenant="acme", outcome="cancelled") >= 1)
    assert pod.metric("inferengine_active_requests", tenant="acme") == 0


def test_a_client_that_vanishes_frees_everything(pod):
    with pod.client("acme") as acme:
        stream = acme.stream("hello", **LONG)
        next(stream)
        assert pod.usage("acme").live == 1
    assert nothing_live(pod, "acme").day.reserved == 0


def test_a_tenant_is_added_suspended_resumed_and_removed_without_a_restart(pod):
    before = pod.processes()
    pod.set_tenant("guest")
    pod.apply()
    with pod.client("guest") as guest, pod.client("acme") as acme:
        assert guest.generate("hello", max_tokens=2, ignore_eos=True).usage.output_tokens == 2
        neighbour = acme.stream("hello", **LONG)
        next(neighbour)
        running = guest.stream("hello", **LONG)
        next(running)
        pod.set_tenant("guest", suspended=True)
        pod.apply()
        with pytest.raises(Rejected) as caught:
            for _ in running:
                pass
        assert caught.value.code == "tenant_suspended"
        pod.until(lambda: pod.processes() == before)
        pod.set_tenant("guest")
        pod.apply()
        assert guest.generate("hello", max_tokens=2, ignore_eos=True).usage.output_tokens == 2
        pod.remove_tenant("guest")
        pod.apply()
        assert next(neighbour).token_ids  # undisturbed by all of it
        neighbour.close()
    pod.until(lambda: pod.processes() == before)


def test_a_killed_engine_ends_streams_retriably_and_comes_back(pod):
    with pod.client("acme") as acme:
        stream = acme.stream("hello", **LONG)
        next(stream)
        pod.kill("engine")
        with pytest.raises(Retryable) as caught:
            for _ in stream:
                pass
        assert caught.value.code == "engine_unavailable"
        assert caught.value.retry_ms > 0
        assert pod.wait_not_ready() == ["the model is not loaded"]
        with pytest.raises(Retryable) as refused:
            acme.generate("hello", max_tokens=1)
        assert refused.value.code == "engine_unavailable"
        usage = nothing_live(pod, "acme")
        assert usage.day.reserved == 0
        pod.wait_ready()
        assert acme.generate("hello", max_tokens=2, ignore_eos=True).usage.output_tokens == 2


def test_a_killed_front_disturbs_its_own_tenant_only(pod):
    with pod.client("acme") as acme, pod.client("beta") as beta:
        undisturbed = beta.stream("hello", **LONG)
        next(undisturbed)
        assert acme.generate("hello", max_tokens=1).usage.output_tokens == 1
        stream = acme.stream("hello", **LONG)
        next(stream)
        pod.kill_front("acme")
        with pytest.raises(ConnectionLost):
            for _ in stream:
                pass
        assert acme.generate("hello", max_tokens=2, ignore_eos=True).usage.output_tokens == 2
        assert next(undisturbed).token_ids
        undisturbed.close()
    for tenant in ("acme", "beta"):
        assert nothing_live(pod, tenant).day.reserved == 0


def test_a_killed_gateway_comes_back_with_all_that_hangs_on_it(pod):
    with pod.client("beta") as beta:
        stream = beta.stream("hello", **LONG)
        next(stream)
        pod.kill("gateway")
        with pytest.raises(Retryable):
            for _ in stream:
                pass
        pod.until(lambda: not pod.is_ready())
        pod.wait_ready()
        assert beta.generate("hello", max_tokens=2, ignore_eos=True).usage.output_tokens == 2
    assert pod.usage("beta").live == 1  # nobody can settle it any more: it is held until its lease expires


def test_a_drained_pod_finishes_what_runs_and_takes_nothing_new(pod):
    with pod.client("acme") as acme:
        stream = acme.stream("hello", max_tokens=2000, temperature=0, ignore_eos=True)
        received = len(next(stream).token_ids)
        pod.terminate()
        assert "draining" in pod.wait_not_ready()
        with pytest.raises(Retryable) as caught:
            acme.generate("hello", max_tokens=1)
        assert caught.value.code == "draining"
        received += sum(len(delta.token_ids) for delta in stream)
    assert received == 2000
    assert stream.finish_reason == "length"
    assert pod.wait() == 0
    usage = pod.usage("acme")
    assert (usage.live, usage.day.reserved) == (0, 0)
