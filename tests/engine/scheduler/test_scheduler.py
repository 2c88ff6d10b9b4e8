"""One story per test: what is scheduled when, and what becomes of slots and requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infer_engine.request import SamplingParams, Usage

Make = Callable[..., Any]
PROMPT = list(range(1, 41))


def test_output_is_what_the_model_says(stepper: Make, continuation: Make, greedy: Make) -> None:
    loop = stepper()
    assert loop.generate(PROMPT, greedy(20)) == continuation(PROMPT, 20, ignore_eos=True)


@pytest.mark.parametrize("budget", [1, 3, 16, 64])
def test_chunks_of_any_size_give_the_same_output(stepper: Make, continuation: Make, greedy: Make, budget: int) -> None:
    loop = stepper(prefill_budget=budget, max_batch_size=1)
    request_id = loop.submit(PROMPT, greedy(5))
    chunks = [works[0][1] for works in iter(loop.step, []) if works]
    assert sum(chunks[: -(-40 // budget)]) == 40
    assert max(chunks) == min(budget, 40)
    assert loop.tokens[request_id] == continuation(PROMPT, 5, ignore_eos=True)


def test_a_decode_goes_in_every_step_beside_the_chunks_of_a_long_prompt(stepper: Make, greedy: Make) -> None:
    loop = stepper(prefill_budget=8)
    first = loop.submit([7, 8, 9], greedy(30))
    loop.step()
    second = loop.submit(PROMPT, greedy(4))
    assert [loop.step() for _ in range(6)] == [[(first, 1), (second, 8)]] * 5 + [[(first, 1), (second, 1)]]


def test_the_budget_is_shared_first_come_first_served(stepper: Make) -> None:
    loop = stepper(prefill_budget=50)
    for offset in (0, 41, 50):
        loop.submit([offset + token for token in range(1, 41)])
    assert loop.step() == [(0, 40), (1, 10)]
    assert loop.step() == [(0, 1), (1, 30), (2, 20)]


def test_a_second_call_hits_all_but_the_last_token(stepper: Make, continuation: Make) -> None:
    loop = stepper()
    assert loop.generate(PROMPT) == loop.generate(PROMPT) == continuation(PROMPT, 8, ignore_eos=True)
    assert (loop.cached(0), loop.cached(1)) == (0, 39)
    assert loop.step() == []


def test_a_conversation_hits_prompt_and_answer(stepper: Make, continuation: Make) -> None:
    loop = stepper()
    answer = loop.generate(PROMPT)
    loop.generate([*PROMPT, *answer, 7, 8])
    assert loop.cached(1) == 40 + 8 - 1  # the last output token was never computed
    assert loop.tokens[1] == continuation([*PROMPT, *answer, 7, 8], 8, ignore_eos=True)


def test_a_prompt_is_shared_while_its_first_request_runs(stepper: Make) -> None:
    loop = stepper()
    loop.submit(PROMPT)
    loop.step()
    loop.submit(PROMPT)
    loop.run()
    assert loop.cached(1) == 39


def test_the_same_prompt_twice_in_one_batch_frees_nothing_twice(stepper: Make, continuation: Make) -> None:
    loop = stepper(prefill_budget=256)
    for _ in range(4):
        loop.submit(PROMPT)
    assert loop.step() == [(0, 40), (1, 40), (2, 40), (3, 40)]
    assert loop.cache.num_tokens == 40  # three copies were freed
    loop.run()
    assert all(loop.tokens[i] == continuation(PROMPT, 8, ignore_eos=True) for i in range(4))
    assert loop.allocator.num_free + loop.cache.num_tokens == loop.allocator.num_slots


def test_namespaces_share_nothing(stepper: Make, continuation: Make) -> None:
    loop = stepper()
    for namespace in ("one", "two", "one"):
        assert loop.generate(PROMPT, namespace=namespace) == continuation(PROMPT, 8, ignore_eos=True)
    assert [loop.cached(i) for i in range(3)] == [0, 0, 39]


def test_without_the_prefix_cache_nothing_is_looked_up_or_kept(stepper: Make, continuation: Make) -> None:
    loop = stepper(use_cache=False)
    assert loop.generate(PROMPT) == loop.generate(PROMPT) == continuation(PROMPT, 8, ignore_eos=True)
    assert (loop.cached(1), loop.cache.num_tokens, loop.allocator.num_free) == (0, 0, 256)
    assert loop.stats.snapshot().hit_rate == 0.0


def test_old_prompts_are_evicted_for_new_ones(stepper: Make, continuation: Make, greedy: Make) -> None:
    loop = stepper(num_slots=64)
    for start in range(20):
        prompt = [(start * 13 + index) % 90 for index in range(30)]
        assert loop.generate(prompt, greedy(6)) == continuation(prompt, 6, ignore_eos=True)
    assert loop.scheduler.gauges().evicted_tokens > 0


def test_when_slots_run_out_the_youngest_is_preempted_and_loses_no_token(
    stepper: Make, continuation: Make, greedy: Make
) -> None:
    loop = stepper(num_slots=64)
    prompts = [[number, *range(20)] for number in range(3)]
    for prompt in prompts:
        loop.submit(prompt, greedy(40))
    loop.run()
    assert loop.stats.snapshot().preemptions > 0
    for index, prompt in enumerate(prompts):
        assert loop.tokens[index] == continuation(prompt, 40, ignore_eos=True)
    assert next(iter(loop.finished)) == 0, "the oldest ends first"
    stats = loop.stats.snapshot()
    assert (stats.cache_hits, stats.cache_misses) == (0, 63), "recomputation is not the callers'"
    assert all(loop.cached(index) == 0 for index in range(3))


def test_preempted_requests_come_back_in_their_old_order(stepper: Make, greedy: Make) -> None:
    loop = stepper(num_slots=48, max_batch_size=3)
    for number in range(5):
        loop.submit([number, *range(14)], greedy(16))
    loop.run()
    assert list(loop.finished) == [0, 1, 2, 3, 4]


def test_what_runs_keeps_room_to_grow_when_others_are_admitted(stepper: Make, greedy: Make) -> None:
    loop = stepper(num_slots=40)
    loop.submit(PROMPT[:20], greedy(10))
    loop.step()
    loop.submit(
        list(range(60, 79)), greedy(2)
    )  # 19 slots are free at the next step, and the first one wants one of them
    loop.run()
    assert list(loop.finished) == [0, 1]
    assert loop.stats.snapshot().preemptions == 0


def test_a_lone_request_that_cannot_grow_ends_with_what_it_has(stepper: Make, continuation: Make, greedy: Make) -> None:
    loop = stepper(num_slots=32)
    tokens = loop.generate(PROMPT[:20], greedy(100))
    finished = loop.finished[0]
    assert (finished.finish_reason, finished.error.code) == ("error", "out_of_kv_slots")
    assert "32 slots" in str(finished.error)
    assert tokens == continuation(PROMPT[:20], 13, ignore_eos=True)  # 32 computed tokens, and the one sampled last
    assert loop.generate([5, 6], greedy(3)) == continuation([5, 6], 3, ignore_eos=True)


def test_a_prompt_of_the_whole_pool_gets_one_token(stepper: Make, continuation: Make, greedy: Make) -> None:
    loop = stepper(num_slots=40)
    assert loop.generate([9, 9, 9], greedy(5))  # leaves something to evict
    assert loop.generate(PROMPT, greedy(1)) == continuation(PROMPT, 1)
    assert loop.finished[1].finish_reason == "length"


def test_a_failed_step_ends_its_requests_and_gives_all_slots_back(stepper: Make, continuation: Make) -> None:
    loop = stepper()
    loop.submit(PROMPT)
    loop.submit([1, 2, 3])
    loop.step()
    loop.model.fail_next = True
    loop.step()
    assert {event.finish_reason for event in loop.finished.values()} == {"error"}
    assert not loop.scheduler.has_work
    assert loop.allocator.num_free + loop.cache.num_tokens == 256
    assert loop.cache.num_protected_tokens == 0
    assert loop.generate(PROMPT) == continuation(PROMPT, 8, ignore_eos=True)


def test_logits_that_are_not_finite_fail_only_their_request(stepper: Make, continuation: Make, poison: int) -> None:
    loop = stepper()
    good = loop.submit(PROMPT)
    bad = loop.submit([*PROMPT, poison])
    loop.run()
    assert loop.finished[bad].error.code == "non_finite_logits"
    assert loop.tokens[good] == continuation(PROMPT, 8, ignore_eos=True)


def test_a_chunk_that_is_not_finite_never_enters_the_cache(stepper: Make, poison: int) -> None:
    loop = stepper(prefill_budget=8)
    loop.generate([1, 2, 3, 4, 5, 6, 7, poison, *range(20)])
    assert loop.finished[0].error.code == "non_finite_logits"
    assert loop.cache.num_tokens == 0


def test_who_comes_and_is_cancelled_while_a_step_begins_is_not_forgotten(
    stepper: Make, greedy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = stepper()
    line_up = loop.scheduler._waiting.line_up

    def line_up_and_be_late(running: Any) -> None:
        line_up(running)
        monkeypatch.undo()
        loop.scheduler.cancel(loop.submit(PROMPT, greedy(50)))

    monkeypatch.setattr(loop.scheduler._waiting, "line_up", line_up_and_be_late)
    loop.step()
    loop.step()
    assert loop.finished[0].finish_reason == "cancelled"


def test_cancellation_and_deadline_act_at_the_next_step(stepper: Make, greedy: Make) -> None:
    loop = stepper(max_batch_size=2)
    running = loop.submit(PROMPT, greedy(50))
    overdue = loop.submit([1, 2, 3], greedy(50), deadline=loop.now + 0.025)
    waiting = loop.submit([7, 8, 9])
    loop.step()
    loop.scheduler.cancel(running)
    loop.scheduler.cancel(waiting)
    loop.scheduler.cancel(12345)  # unknown: no error
    loop.step()
    assert loop.finished[running].finish_reason == loop.finished[waiting].finish_reason == "cancelled"
    assert (len(loop.tokens[running]), len(loop.tokens[waiting])) == (1, 0)
    loop.step()
    assert loop.finished[overdue].finish_reason == "deadline"
    assert not loop.scheduler.has_work
    assert loop.cache.num_protected_tokens == 0


def test_a_cancelled_request_leaves_its_computed_prefix(stepper: Make) -> None:
    loop = stepper(prefill_budget=16)
    request_id = loop.submit(PROMPT)
    loop.step()
    loop.scheduler.cancel(request_id)
    loop.step()
    loop.generate(PROMPT)
    assert loop.cached(1) == 16


def test_a_request_that_ends_early_has_used_what_was_computed_for_it(stepper: Make) -> None:
    loop = stepper(prefill_budget=16)
    waiting, cut = loop.submit(PROMPT), loop.submit(PROMPT)
    loop.scheduler.cancel(waiting)
    loop.step()
    loop.scheduler.cancel(cut)
    loop.step()
    cut_again = loop.submit(PROMPT)
    loop.step()
    loop.scheduler.cancel(cut_again)
    loop.step()
    assert loop.finished[waiting].usage == Usage(0, 0, 0)
    assert loop.finished[cut].usage == Usage(16, 0, 0)
    assert loop.finished[cut_again].usage == Usage(32, 16, 0)


def test_a_dropped_namespace_is_never_hit_again_and_its_running_requests_go_on(
    stepper: Make, continuation: Make
) -> None:
    loop = stepper()
    loop.generate(PROMPT, namespace="a")
    running = loop.submit(PROMPT, namespace="a")
    loop.step()
    loop.scheduler.drop_namespace("a")
    loop.scheduler.check_integrity()
    later = loop.submit(PROMPT, namespace="a")
    loop.run()
    assert loop.tokens[running] == loop.tokens[later] == continuation(PROMPT, 8, ignore_eos=True)
    assert loop.cached(later) == 0
    loop.scheduler.drop_namespace("a")
    assert loop.allocator.num_free == 256


@pytest.mark.parametrize(
    ("params", "reason", "expected"),
    [
        (SamplingParams(max_tokens=3, temperature=0.0), "length", 3),
        (SamplingParams(max_tokens=50, temperature=0.0, stop_token_ids=(83,)), "stop", None),
    ],
)
def test_stop_tokens_and_length(
    stepper: Make, continuation: Make, params: SamplingParams, reason: str, expected: int | None
) -> None:
    loop = stepper()
    whole = continuation(PROMPT, 50, ignore_eos=True)
    stop_token = whole[5]
    if expected is None:
        params = SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True, stop_token_ids=(stop_token,))
        expected = whole.index(stop_token) + 1
    assert loop.generate(PROMPT, params) == whole[:expected]
    assert loop.finished[0].finish_reason == reason


def test_eos_ends_unless_ignored(stepper: Make, continuation: Make, greedy: Make) -> None:
    loop = stepper(max_model_len=512, num_slots=512)
    until_eos = continuation(PROMPT, 300)
    assert len(until_eos) < 300
    assert loop.generate(PROMPT, greedy(300, ignore_eos=False)) == until_eos
    assert loop.finished[0].finish_reason == "stop"
    assert len(loop.generate(PROMPT, greedy(300))) == 300


def test_output_ends_at_the_models_length(stepper: Make, greedy: Make) -> None:
    loop = stepper(max_model_len=50)
    assert len(loop.generate(PROMPT, greedy(100))) == 10
    assert loop.finished[0].finish_reason == "length"


def test_usage_by_tenant(stepper: Make, greedy: Make) -> None:
    loop = stepper(num_slots=64)
    for tenant in ("acme", "acme", "globex"):
        loop.generate(PROMPT, greedy(4), namespace=f"ns-{tenant}", tenant=tenant)
    usage = loop.scheduler.tenant_usage()
    acme, globex = usage["acme"], usage["globex"]
    assert (acme.lookup_tokens, acme.hit_tokens) == (80, 39)
    assert (globex.lookup_tokens, globex.hit_tokens, globex.evicted_tokens) == (40, 0, 0)
    assert acme.evicted_tokens == loop.scheduler.gauges().evicted_tokens > 0
    assert acme.kv_tokens + globex.kv_tokens == loop.scheduler.gauges().pool_used_tokens
    loop.submit(list(range(50, 70)), tenant="acme", namespace="ns-acme")
    loop.step()
    running = loop.scheduler.tenant_usage()
    assert running["acme"].kv_tokens + running["globex"].kv_tokens == loop.scheduler.gauges().pool_used_tokens
