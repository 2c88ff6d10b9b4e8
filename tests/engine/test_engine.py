"""The engine as its callers see it: threads, asyncio, refusals, the end. The model is the arithmetic one of conftest.py."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from infer_engine import (
    ConfigError,
    EngineClosedError,
    EngineConfig,
    FinishedEvent,
    InferenceEngine,
    InvalidRequestError,
    QueueFullError,
    SamplingParams,
    Share,
)

Make = Callable[..., Any]
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
LONG = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
CONFIG = EngineConfig(max_cache_tokens=2048, max_batch_size=8, schedule_interval_ms=0)


@pytest.fixture
def model(arithmetic: Make) -> Any:
    return arithmetic()


@pytest.fixture
def engine(model: Any) -> Iterator[InferenceEngine]:
    with InferenceEngine(model, CONFIG) as running:
        yield running
        running.check_integrity()


def test_generate_keeps_the_order_of_prompts(engine: InferenceEngine, continuation: Make) -> None:
    prompts = [[index, 2 * index, 3] for index in range(20)]
    outputs = engine.generate(prompts, GREEDY)
    assert [list(output.token_ids) for output in outputs] == [continuation(p, 8, ignore_eos=True) for p in prompts]
    assert {output.finish_reason for output in outputs} == {"length"}
    assert outputs[3].text is None
    assert outputs[3].usage.output_tokens == 8


def test_one_prompt_or_params_per_prompt(engine: InferenceEngine) -> None:
    assert len(engine.generate([1, 2, 3], GREEDY)) == 1
    assert len(engine.generate(np.array([1, 2, 3]), GREEDY)) == 1
    short = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    outputs = engine.generate([[1, 2, 3], [4, 5]], [GREEDY, short])
    assert [len(output.token_ids) for output in outputs] == [8, 2]


def test_a_namespace_hits_only_itself(engine: InferenceEngine) -> None:
    prompt = list(range(50))
    cached = [engine.generate(prompt, GREEDY, namespace=name)[0].usage.cached_tokens for name in ("a", "b", "a")]
    assert cached == [0, 0, 49]
    engine.drop_namespace("a")
    assert engine.generate(prompt, GREEDY, namespace="a")[0].usage.cached_tokens == 0


def test_stream_gives_tokens_as_they_come_and_a_last_event(engine: InferenceEngine, continuation: Make) -> None:
    *tokens, last = engine.stream([1, 2, 3], GREEDY)
    assert [token for event in tokens for token in event.token_ids] == continuation([1, 2, 3], 8, ignore_eos=True)
    assert isinstance(last, FinishedEvent)
    assert (last.finish_reason, last.usage.prompt_tokens, last.error) == ("length", 3, None)


def test_closing_a_stream_cancels_its_request(engine: InferenceEngine, wait_until: Make) -> None:
    stream = engine.stream([1, 2, 3], LONG)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    wait_until(lambda: engine.engine_stats().cancelled_requests == 1)


async def test_asyncio_forms_give_the_same(engine: InferenceEngine, continuation: Make) -> None:
    expected = continuation([1, 2, 3], 8, ignore_eos=True)
    outputs = await engine.agenerate([[1, 2, 3]] * 3, GREEDY)
    assert [list(output.token_ids) for output in outputs] == [expected] * 3
    streamed = [event async for event in engine.astream([1, 2, 3], GREEDY)]
    assert [token for event in streamed[:-1] for token in event.token_ids] == expected  # type: ignore[union-attr]
    assert (await engine.aengine_stats()).completed_requests == 4


async def test_cancelling_a_task_cancels_its_requests(engine: InferenceEngine, model: Any, wait_until: Make) -> None:
    model.may_run.clear()
    task = asyncio.create_task(engine.agenerate([[1, 2, 3], [4, 5, 6]], LONG))
    assert await asyncio.to_thread(model.is_running.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    model.may_run.set()
    await asyncio.to_thread(wait_until, lambda: engine.engine_stats().cancelled_requests == 2)


async def test_a_caller_cancelled_while_it_waits_for_its_turn_takes_no_turn_with_it(model: Any) -> None:
    config = EngineConfig(max_cache_tokens=2048, max_concurrent_requests=1, schedule_interval_ms=0)
    with InferenceEngine(model, config) as engine:
        model.may_run.clear()
        first = asyncio.create_task(engine.agenerate([1, 2, 3], GREEDY))
        assert await asyncio.to_thread(model.is_running.wait, 60)
        waiting = [asyncio.create_task(engine.agenerate([4, 5, 6], GREEDY)) for _ in range(3)]
        await asyncio.sleep(0)  # each has asked for its turn
        for task in waiting[:2]:
            task.cancel()
        assert [type(error) for error in await asyncio.gather(*waiting[:2], return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2
        model.may_run.set()
        assert [(await task)[0].finish_reason for task in (first, waiting[2])] == ["length", "length"]
        assert engine.engine_stats().total_requests == 2


def test_concurrent_callers_beyond_the_limit_wait_for_their_turn(model: Any, wait_until: Make) -> None:
    config = EngineConfig(max_cache_tokens=2048, max_concurrent_requests=2, schedule_interval_ms=0)
    with InferenceEngine(model, config) as engine:
        model.may_run.clear()
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda i=i: results.append(engine.generate([i, 7], GREEDY)[0])) for i in range(5)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: engine.engine_stats().total_requests == 2)
        model.may_run.set()
        for thread in threads:
            thread.join()
        assert len(results) == 5
        assert max(len(batch) for batch in model.batches) <= 2


def test_submitted_requests_beyond_the_limit_wait_in_the_queue(model: Any) -> None:
    """As a server's do, which come by `submit`."""
    config = EngineConfig(max_cache_tokens=2048, max_batch_size=8, max_concurrent_requests=2, schedule_interval_ms=1000)
    reasons: list[str] = []
    with InferenceEngine(model, config) as engine:
        for index in range(6):
            engine.submit(
                [index, 7], GREEDY, on_event=lambda event: reasons.append(getattr(event, "finish_reason", ""))
            )
        engine.close(drain=True)
    assert [reason for reason in reasons if reason] == ["length"] * 6
    assert max(len(batch) for batch in model.batches) == 2


def test_a_full_queue_refuses_and_takes_again_later(model: Any, wait_until: Make) -> None:
    config = EngineConfig(max_cache_tokens=2048, max_batch_size=2, max_queue_size=3, schedule_interval_ms=0)
    finished: list[FinishedEvent] = []

    def on_event(event: Any) -> None:
        if isinstance(event, FinishedEvent):
            finished.append(event)

    with InferenceEngine(model, config) as engine:
        model.may_run.clear()
        for index in range(5):
            engine.submit([index, 1], GREEDY, on_event=on_event)
        with pytest.raises(QueueFullError, match="max_queue_size") as caught:
            engine.submit([1, 2], GREEDY, on_event=on_event)
        assert caught.value.retry_ms is not None
        model.may_run.set()
        wait_until(lambda: len(finished) > 0)
        engine.submit([1, 2], GREEDY, on_event=on_event)
        engine.close(drain=True)
    assert [event.finish_reason for event in finished] == ["length"] * 6


def test_an_idle_engine_gathers_its_first_batch(arithmetic: Make) -> None:
    """The window ends when a whole batch waits, so a long window costs nothing here."""
    for interval, expected in ((1000, [2, 2, 2, 2]), (0, [2])):
        model = arithmetic()
        config = EngineConfig(max_cache_tokens=2048, max_batch_size=4, schedule_interval_ms=interval)
        with InferenceEngine(model, config) as engine:
            if interval == 0:
                model.may_run.clear()
            engine.submit([1, 2], GREEDY, on_event=lambda event: None)
            if interval == 0:
                assert model.is_running.wait(60)  # it did not wait for company
            for index in range(3):
                engine.submit([index, 3], GREEDY, on_event=lambda event: None)
            model.may_run.set()
            engine.close(drain=True)
        assert model.batches[0] == expected


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "at least one"),
        ([1, 97], "97; must be from 0 to 96"),
        ([-1], "from 0 to 96"),
        ([1.5], "integer token ids"),
        ([True], "integer token ids"),
        ([[1, 2]], "integer token ids"),
        (list(range(90)) * 6, "at most 511"),
    ],
)
def test_a_bad_prompt_is_refused(engine: InferenceEngine, prompt: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        engine.submit(prompt, GREEDY, on_event=lambda event: None)
    assert engine.engine_stats().rejected_requests == 1


def test_a_prompt_larger_than_the_pool_is_refused(model: Any) -> None:
    with (
        InferenceEngine(model, EngineConfig(max_cache_tokens=64)) as engine,
        pytest.raises(InvalidRequestError, match="at most 64 fit in the KV pool"),
    ):
        engine.generate(list(range(65)), GREEDY)


def test_other_bad_input_is_refused(engine: InferenceEngine) -> None:
    for call, message in (
        (lambda: engine.generate("text", GREEDY), "no tokenizer"),
        (lambda: engine.generate([], GREEDY), "got none"),
        (lambda: engine.generate([[1], [2]], [GREEDY]), "got 1 for 2 prompts"),
        (lambda: engine.generate([1], SamplingParams(stop=("x",))), "stop_token_ids"),
        (lambda: engine.generate([1], GREEDY, namespace=7), "namespace: got 7"),  # type: ignore[arg-type]
        (lambda: engine.generate([1], GREEDY, deadline=float("nan")), "deadline: got nan"),
        (lambda: engine.generate([1], {"max_tokens": 3}), "params: got"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequestError, match=message):
            call()
    assert engine.generate([1, 2], GREEDY)[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_dim": 3}, "kv_dim: got 3; the model arithmetic has 2"),
        ({"num_layers": 9}, "num_layers: got 9; the model arithmetic has 2"),
        ({"max_model_len": 513}, "max_model_len: got 513; .* at most 512"),
    ],
)
def test_sizes_that_are_not_the_models_are_refused(model: Any, fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InferenceEngine(model, EngineConfig(**fields))


def test_a_prompt_refused_in_a_list_cancels_the_others(engine: InferenceEngine, wait_until: Make) -> None:
    with pytest.raises(InvalidRequestError):
        engine.generate([[1, 2, 3], [4, 500]], LONG)
    wait_until(lambda: engine.engine_stats().cancelled_requests == 1)


def test_a_model_failure_is_told_without_its_text_and_the_engine_lives_on(
    engine: InferenceEngine, model: Any, continuation: Make
) -> None:
    model.fail_next = True
    output = engine.generate([1, 2, 3], GREEDY)[0]
    assert output.finish_reason == "error"
    assert output.error is not None
    assert output.error.code == "model_failed"  # type: ignore[attr-defined]
    assert "RuntimeError" in str(output.error)
    assert "nobody" not in str(output.error)
    assert list(engine.generate([1, 2, 3], GREEDY)[0].token_ids) == continuation([1, 2, 3], 8, ignore_eos=True)


def test_a_deadline_ends_a_request(engine: InferenceEngine) -> None:
    output = engine.generate([1, 2, 3], LONG, deadline=time.monotonic())[0]
    assert (output.finish_reason, output.error) == ("deadline", None)


@pytest.mark.parametrize("error", [ValueError("a bug of the listener"), SystemExit(1), asyncio.CancelledError()])
def test_a_listener_that_raises_loses_its_request_only(
    engine: InferenceEngine, wait_until: Make, error: BaseException
) -> None:
    def on_event(event: Any) -> None:
        raise error

    engine.submit([1, 2, 3], LONG, on_event=on_event)
    assert engine.generate([4, 5, 6], GREEDY)[0].finish_reason == "length"
    wait_until(lambda: engine.engine_stats().cancelled_requests == 1)


def test_events_of_one_step_come_before_one_flush(model: Any) -> None:
    flushed: list[int] = []
    pending: list[Any] = []

    def on_step_end() -> None:
        flushed.append(len(pending))
        pending.clear()

    with InferenceEngine(model, CONFIG, on_step_end=on_step_end, start_thread=False) as engine:
        for index in range(3):
            engine.submit([index, 5], GREEDY, on_event=pending.append)
        while engine.has_work:
            engine.step()
            engine.check_integrity()
    assert flushed == [3] * 7 + [6]


def test_close_ends_what_runs_and_what_waits(model: Any, wait_until: Make) -> None:
    finished: list[FinishedEvent] = []

    def on_event(event: Any) -> None:
        if isinstance(event, FinishedEvent):
            finished.append(event)

    config = EngineConfig(max_cache_tokens=2048, max_batch_size=2, schedule_interval_ms=0)
    engine = InferenceEngine(model, config)
    model.may_run.clear()
    for index in range(4):
        engine.submit([index, 1], LONG, on_event=on_event)
    assert model.is_running.wait(60)
    closer = threading.Thread(target=engine.close)
    closer.start()
    wait_until(lambda: engine.is_closed)
    model.may_run.set()
    closer.join()
    engine.close()
    assert [type(event.error) for event in finished] == [EngineClosedError] * 4
    for call in (
        lambda: engine.generate([1, 2], GREEDY),
        lambda: engine.submit([1, 2], GREEDY, on_event=on_event),
    ):
        with pytest.raises(EngineClosedError):
            call()


def test_close_with_drain_finishes_first(model: Any) -> None:
    engine = InferenceEngine(model, CONFIG)
    reasons: list[str] = []
    for index in range(4):
        engine.submit([index, 1], LONG, on_event=lambda event: reasons.append(getattr(event, "finish_reason", "")))
    engine.close(drain=True)
    assert [reason for reason in reasons if reason] == ["length"] * 4


def test_a_bug_in_the_step_is_heard_by_every_caller(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InferenceEngine(model, CONFIG)
    model.may_run.clear()
    events: list[Any] = []
    engine.submit([1, 2], LONG, on_event=events.append)
    assert model.is_running.wait(60)
    monkeypatch.setattr(engine._scheduler, "update", lambda batch, sampled: 1 / 0)
    model.may_run.set()
    engine.close()
    assert events[-1].finish_reason == "error"
    assert "ZeroDivisionError" in str(events[-1].error)
    with pytest.raises(EngineClosedError):
        engine.generate([1, 2], GREEDY)


def test_an_end_that_fails_is_heard_by_every_caller(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InferenceEngine(model, CONFIG)
    model.may_run.clear()
    events: list[Any] = []
    engine.submit([1, 2], LONG, on_event=events.append)
    assert model.is_running.wait(60)
    monkeypatch.setattr(engine._scheduler, "end_all", lambda reason, error: 1 / 0)
    closer = threading.Thread(target=engine.close)
    closer.start()
    assert not engine.has_ended
    model.may_run.set()
    closer.join()
    assert engine.has_ended
    assert "ZeroDivisionError" in str(events[-1].error)


def test_logits_of_a_wrong_shape_fail_their_step_only(
    engine: InferenceEngine, model: Any, continuation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = model.forward
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda batch, pool: forward(batch, pool)[:, :-1])
        output = engine.generate([1, 2, 3], GREEDY)[0]
    assert output.error is not None
    assert output.error.code == "model_failed"  # type: ignore[attr-defined]
    assert list(engine.generate([1, 2, 3], GREEDY)[0].token_ids) == continuation([1, 2, 3], 8, ignore_eos=True)


def test_what_waits_while_its_namespace_is_dropped_leaves_nothing_behind(model: Any) -> None:
    config = EngineConfig(max_cache_tokens=2048, max_batch_size=1)
    with InferenceEngine(model, config, start_thread=False) as engine:
        for namespace in ("other", "a"):
            engine.submit(list(range(20)), GREEDY, namespace=namespace, tenant=namespace, on_event=lambda event: None)
        engine.step()
        assert engine.engine_stats().waiting_requests == 1
        engine.drop_namespace("a")
        while engine.has_work:
            engine.step()
        assert engine.engine_stats().completed_requests == 2
        assert engine.cache_usage_by_tenant()["a"].kv_tokens == 0


def test_counters_add_up(engine: InferenceEngine) -> None:
    prompt = list(range(60))
    engine.generate(prompt, GREEDY, tenant="acme")
    engine.generate(prompt, GREEDY, tenant="acme")
    stats = engine.engine_stats()
    assert (stats.total_requests, stats.completed_requests, stats.failed_requests) == (2, 2, 0)
    assert (stats.cache_hits, stats.cache_misses) == (59, 61)
    assert stats.hit_rate == pytest.approx(59 / 120)
    assert (stats.prefill_tokens, stats.decode_tokens) == (61, 14)
    assert stats.steps == 16
    assert (stats.pool_tokens, stats.pool_used_tokens, stats.cached_tokens) == (2048, 67, 67)
    assert (stats.running_requests, stats.waiting_requests) == (0, 0)
    assert 0 < stats.itl_p50_ms <= stats.itl_p99_ms
    assert 0 < stats.ttft_p50_ms <= stats.ttft_p99_ms
    assert stats.avg_queue_time_ms >= 0
    assert stats.prefill_time_s > 0
    assert stats.decode_time_s > 0
    usage = engine.cache_usage_by_tenant()["acme"]
    assert (usage.lookup_tokens, usage.hit_tokens, usage.kv_tokens, usage.evicted_tokens) == (120, 59, 67, 0)


def test_stats_of_an_unused_engine_are_zero(engine: InferenceEngine) -> None:
    stats = engine.engine_stats()
    assert (stats.hit_rate, stats.avg_queue_time_ms, stats.ttft_p99_ms, stats.itl_p50_ms) == (0, 0, 0, 0)
    assert stats.pool_tokens == 2048


def test_a_flood_of_one_tenant_shuts_no_other_out(model: Any) -> None:
    config = EngineConfig(max_cache_tokens=2048, max_batch_size=2, max_queue_size=10)
    with InferenceEngine(model, config, start_thread=False) as engine:

        def submit(tenant: str) -> None:
            engine.submit([1, 2, 3], GREEDY, tenant=tenant, namespace=tenant, on_event=lambda event: None)

        for _ in range(12):
            submit("flood")
        for _ in range(6):
            submit("acme")  # half of the places: two tenants have some
        for tenant in ("flood", "acme"):
            with pytest.raises(QueueFullError):
                submit(tenant)
        for number in range(6):
            submit(f"other-{number}")
        with pytest.raises(QueueFullError):
            submit("one more")  # twice the limit
        while engine.has_work:
            engine.step()
        for _ in range(12):
            submit("flood")  # alone again, it may have them all
        with pytest.raises(QueueFullError):
            submit("flood")


def test_a_dropped_tenant_leaves_no_key_or_value_behind(arithmetic: Any) -> None:
    with InferenceEngine(arithmetic(), EngineConfig(max_cache_tokens=256)) as engine:
        for tenant in ("acme", "globex"):
            engine.generate(
                [[1, 2, 3, 4, 5]],
                SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True),
                namespace=tenant,
                tenant=tenant,
            )
        assert int(engine._pool.keys[0][:16].abs().sum()) > 0
        assert engine.drop_tenant("acme") == 8
        usage = engine.cache_usage_by_tenant()
        assert (usage["acme"].kv_tokens, usage["acme"].evicted_by_cause["purge"]) == (0, 8)
        assert engine.drop_tenant("globex") == 8
        written = engine._pool.keys[0][:16]
        assert int(written.abs().sum()) == 0


def test_what_the_last_request_freed_is_overwritten_before_its_end_is_told(arithmetic: Any) -> None:
    with InferenceEngine(arithmetic(), EngineConfig(max_cache_tokens=256)) as engine:
        engine.set_shares({"private": Share(insert=False, zero_on_free=True)})
        engine.generate(
            [[1, 2, 3, 4, 5]],
            SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True),
            namespace="private",
            tenant="private",
        )
        assert engine.cache_usage_by_tenant()["private"].kv_tokens == 0
        assert int(engine._pool.keys[0][:8].abs().sum()) == 0


def test_an_idle_engine_lets_go_of_what_has_outlived_its_time(arithmetic: Any) -> None:
    with InferenceEngine(arithmetic(), EngineConfig(max_cache_tokens=256)) as engine:
        engine.set_shares({"brief": Share(ttl_seconds=1)})
        engine.generate(
            [[1, 2, 3]],
            SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True),
            namespace="brief",
            tenant="brief",
        )
        assert engine.cache_usage_by_tenant()["brief"].kv_tokens == 4
        deadline = time.monotonic() + 60
        while engine.cache_usage_by_tenant()["brief"].kv_tokens:
            assert time.monotonic() < deadline
            time.sleep(0.05)
