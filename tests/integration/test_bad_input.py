"""What a client can do wrong, through the whole stack: a clear error each, and nothing is lost by it."""

import asyncio
import math

import msgspec
import pytest
import zmq

from infer_server.client import AuthenticationFailed, Client, InferError, Rejected, Retryable

from .conftest import Pod, serving

GREEDY = {"temperature": 0, "ignore_eos": True}
WRONG = [
    ({"model": "gpt-5"}, "unknown_model", "'gpt-5'; this endpoint serves 'test-model'"),
    ({"prompt": ""}, "invalid_request", "prompt: is empty"),
    ({"messages": []}, "invalid_request", "messages: is empty"),
    ({"token_ids": []}, "invalid_request", "token_ids: is empty"),
    ({"token_ids": [1, 49152]}, "invalid_request", "token_ids: got 49152; each must be from 0 to 49151"),
    ({"prompt": "word " * 9000}, "prompt_too_long", "have room for 8192"),
    ({"max_tokens": -1}, "invalid_request", "max_tokens: got -1; must be an integer of at least 1"),
    ({"max_tokens": 0}, "invalid_request", "max_tokens: got 0"),
    ({"max_tokens": 8192}, "invalid_request", "at most 8191 fit into 8192"),
    ({"temperature": math.nan}, "invalid_request", "temperature: got nan; must be a finite number"),
    ({"temperature": -0.5}, "invalid_request", "temperature: got -0.5"),
    ({"top_p": 0.0}, "invalid_request", "top_p: got 0.0; must be a finite number, greater than 0"),
    ({"top_k": -1}, "invalid_request", "top_k: got -1"),
    ({"min_p": math.inf}, "invalid_request", "min_p: got inf"),
    ({"presence_penalty": 3.0}, "invalid_request", "presence_penalty: got 3.0"),
    ({"frequency_penalty": -3.0}, "invalid_request", "frequency_penalty: got -3.0"),
    ({"repetition_penalty": 0.0}, "invalid_request", "repetition_penalty: got 0.0"),
    ({"seed": -1}, "invalid_request", "seed: got -1"),
    ({"stop": [""]}, "invalid_request", "stop: each must be"),
    ({"stop_token_ids": [-1]}, "invalid_request", "stop_token_ids: got -1"),
    ({"logprobs": 21}, "invalid_request", "logprobs: got 21; must be an integer from 0 to 20"),
    ({"messages": [{"role": "user"}]}, "bad_request", "`content` - at `$.messages[0]`"),
    ({"max_tokens": "many"}, "bad_request", "`$.max_tokens`"),
    ({"deadline_ms": 0}, "bad_request", "`$.deadline_ms`"),
    ({"cache_salt": "s" * 129}, "bad_request", "`$.cache_salt`"),
]


def nothing_is_held(pod, tenant="acme"):
    pod.until(lambda: (usage := pod.usage(tenant)).live == 0 and usage.day.reserved == 0)
    pod.until(lambda: pod.metric("inferengine_active_requests", tenant=tenant) == 0)
    pod.until(lambda: pod.metric("inferengine_engine_running_requests") == 0)


def test_wrong_requests_are_refused_by_name_and_cost_nothing(pod):
    with pod.client("acme") as acme:
        expected = acme.generate("x", max_tokens=4, **GREEDY).token_ids
        charged = pod.usage("acme").day.used
        for fields, code, message in WRONG:
            prompt = {} if {"messages", "token_ids"} & fields.keys() else {"prompt": "x"}
            with pytest.raises(Rejected) as caught:
                acme.generate(**prompt | fields)
            assert (caught.value.code, caught.value.retry_ms) == (code, None), fields
            assert message in caught.value.message, fields
            assert len(caught.value.message) < 300, fields
        assert pod.usage("acme").day.used == charged
        assert acme.generate("x", max_tokens=4, **GREEDY).token_ids == expected
    nothing_is_held(pod)


async def test_errors_are_the_same_in_asyncio(pod):
    async with pod.async_client("acme") as acme:
        for fields, code, message in WRONG:
            prompt = {} if {"messages", "token_ids"} & fields.keys() else {"prompt": "x"}
            with pytest.raises(Rejected) as caught:
                await acme.generate(**prompt | fields)
            assert (caught.value.code, message in caught.value.message) == (code, True), fields


@pytest.fixture
def dealer(pod):
    """A plain socket, without our library."""
    keys = pod.credentials("acme")
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.curve_serverkey = keys["server_public_key"].encode()
        dealer.curve_publickey = keys["client_public_key"].encode()
        dealer.curve_secretkey = keys["client_secret_key"].encode()
        dealer.connect(keys["endpoint"])
        yield dealer


def receive(dealer):
    assert dealer.poll(60_000), "no answer"
    header, body = (
        msgspec.json.decode(frame) if frame[:1] == b"{" else msgspec.msgpack.decode(frame)
        for frame in dealer.recv_multipart()
    )
    return header["op"], header.get("rid"), body


def outcome(dealer, rid):
    while not ((answer := receive(dealer))[0] in ("END", "ERR") and answer[1] == rid):
        continue
    return answer[0], answer[2]


REQ = b'{"op": "REQ", "rid": "1"}'


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"hello"], "bad_frame"),
        ([REQ], "bad_frame"),
        ([REQ, b"{}", b"{}"], "bad_frame"),
        ([b'{"op": "EAT"}', b"{}"], "bad_frame"),
        ([b'{"op": "REQ", "rid": "1", "v": 9}', b"{}"], "unsupported_version"),
        ([b'{"op": "REQ"}', b'{"prompt": "x"}'], "bad_request"),
        ([REQ, b"\xff\xfe"], "bad_request"),
        ([REQ, b'{"prompt": "x", "temperature": NaN}'], "bad_request"),
        ([REQ, b'{"prompt": "x", "tenant": "beta"}'], "bad_request"),
    ],
)
def test_malformed_frames_are_answered_and_the_connection_stays(frames, code, pod, dealer):
    dealer.send_multipart(frames)
    op, _, body = receive(dealer)
    assert (op, body["code"]) == ("ERR", code)
    assert body["message"]
    dealer.send_multipart([REQ, b'{"prompt": "x", "max_tokens": 2, "ignore_eos": true}'])
    op, body = outcome(dealer, "1")
    assert (op, body["usage"]["output_tokens"]) == ("END", 2)


def test_a_duplicate_id_is_refused_and_the_running_request_goes_on(pod, dealer):
    dealer.send_multipart([REQ, b'{"prompt": "x", "max_tokens": 4000, "ignore_eos": true, "temperature": 0}'])
    assert receive(dealer)[0] == "ACK"
    dealer.send_multipart([REQ, b'{"prompt": "y"}'])
    op, body = outcome(dealer, "1")
    assert (op, body["code"]) == ("ERR", "duplicate_request")
    assert receive(dealer)[0] == "TOK"
    dealer.send_multipart([b'{"op": "CANCEL", "rid": "1"}', b"{}"])
    op, body = outcome(dealer, "1")
    assert (op, body["finish_reason"]) == ("END", "cancelled")
    assert body["usage"]["output_tokens"] > 0
    nothing_is_held(pod)


def test_a_key_that_nobody_has_given_out_is_refused(pod):
    public, secret = (key.decode() for key in zmq.curve_keypair())
    keys = pod.credentials("acme") | {"client_public_key": public, "client_secret_key": secret}
    with Client(**keys) as stranger, pytest.raises(AuthenticationFailed) as caught:
        stranger.generate("x", max_tokens=1)
    assert caught.value.code == "authentication_failed"
    assert keys["endpoint"] in caught.value.message


@pytest.fixture(scope="module")
def tight_pod(tiny_dir, store_url, tmp_path_factory):
    """Room for 96 tokens, four requests at once and two more in the queue."""
    sizes = {"max_cache_tokens": 96, "max_batch_size": 4, "max_queue_size": 2, "chunked_prefill_tokens": 16}
    for running in serving(Pod(tmp_path_factory.mktemp("pod"), str(tiny_dir), store_url, "tight", **sizes)):
        running.wait_ready()
        yield running


def test_a_full_queue_refuses_retriably_and_loses_nothing(tight_pod):
    """The engine stands still until 30 requests have been admitted by the gateway: it finds them all at once."""
    numbers = range(100, 130)

    async def ask_all():
        async with tight_pod.async_client("acme") as acme:
            with tight_pod.standing_still("engine"):
                asked = [acme.generate(token_ids=[n], max_tokens=20, **GREEDY) for n in numbers]
                calls = [asyncio.create_task(each) for each in asked]
                await asyncio.to_thread(tight_pod.until, lambda: tight_pod.usage("acme").live == len(numbers))
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(ask_all())
    refused = [answer for answer in answers if isinstance(answer, InferError)]
    served = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(refused) + len(served) == len(numbers)
    assert len(served) >= 4 + 2
    assert refused
    for error in refused:
        assert (type(error), error.code) == (Retryable, "queue_full")
        assert error.retry_ms > 0
        assert "max_queue_size 2" in error.message
    assert {len(answer.token_ids) for answer in served} == {20}
    nothing_is_held(tight_pod)


def test_a_request_that_cannot_grow_in_the_pool_is_refused_before_it_begins(tight_pod):
    with tight_pod.client("acme") as acme:
        with pytest.raises(Rejected, match="max_tokens: got 96; after a prompt of 1 tokens at most 95 fit into 96"):
            acme.generate(token_ids=[100], max_tokens=96)
        with pytest.raises(Rejected, match="the prompt has 96 tokens; prompt and output together have room for 96"):
            acme.generate(token_ids=[100] * 96)
        whole = acme.generate(token_ids=[100], max_tokens=95, **GREEDY)
    assert (len(whole.token_ids), whole.finish_reason) == (95, "length")
    nothing_is_held(tight_pod)


def test_requests_that_cannot_all_grow_take_turns_and_lose_no_token(tight_pod):
    """Four of them need 320 slots of 96."""
    before = tight_pod.metric("inferengine_engine_preemptions_total")

    async def ask(prompts):
        async with tight_pod.async_client("acme") as acme:
            calls = [acme.generate(token_ids=prompt, max_tokens=60, **GREEDY) for prompt in prompts]
            return [answer.token_ids for answer in await asyncio.gather(*calls)]

    prompts = [list(range(first, first + 20)) for first in (100, 200, 300, 400)]
    alone = [asyncio.run(ask([prompt]))[0] for prompt in prompts]
    assert asyncio.run(ask(prompts)) == alone
    tight_pod.until(lambda: tight_pod.metric("inferengine_engine_preemptions_total") > before)
    tight_pod.until(lambda: tight_pod.metric("inferengine_evicted_tokens_total", tenant="acme", cause="pressure") > 0)
    nothing_is_held(tight_pod)
