"""What one tenant can do to others by requests that never run, or that run only to be in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infer_engine.config import Share
from infer_engine.scheduler.fairness import QUANTUM, DeficitLongestPrefix, LongestPrefix
from infer_engine.scheduler.lines import MAX_OVERTAKEN

Make = Callable[..., Any]


def prompt(number: int, length: int) -> list[int]:
    return [(number * 17 + index * 5) % 90 for index in range(length)]


def ask(loop: Any, tenant: str, number: int, length: int, params: Any) -> int:
    return int(loop.submit(prompt(number, length), params, namespace=tenant, tenant=tenant))


def test_a_prompt_that_minima_leave_no_room_for_ends_at_once(stepper: Make, greedy: Make) -> None:
    """Else the whole batch would have to run empty before the next request is admitted."""
    loop = stepper(num_slots=200, prefill_budget=256)
    loop.scheduler.set_share("owner", Share(min_tokens=100))
    loop.generate(prompt(1, 98), greedy(2), namespace="owner", tenant="owner")
    ask(loop, "worker", 2, 20, greedy(60))
    loop.step()
    hopeless = ask(loop, "hostile", 3, 150, greedy(2))
    loop.step()
    assert loop.finished[hopeless].error.code == "out_of_kv_slots"
    assert loop.scheduler.num_running == 1


def test_a_request_within_its_minimum_does_not_wait_behind_one_that_waits_for_room(stepper: Make, greedy: Make) -> None:
    loop = stepper(num_slots=200, prefill_budget=256)
    loop.scheduler.set_share("owner", Share(min_tokens=60))
    ask(loop, "worker", 1, 60, greedy(60))
    loop.step()
    large = ask(loop, "large", 2, 139, greedy(1))
    loop.step()
    owner = ask(loop, "owner", 3, 30, greedy(4))
    loop.step()
    assert len(loop.tokens[owner]) == 1
    loop.run()
    assert loop.finished[large].finish_reason == "length"


def test_what_its_owner_has_cached_does_not_count_against_its_guarantee(stepper: Make, greedy: Make) -> None:
    loop = stepper(num_slots=128, prefill_budget=256)
    loop.scheduler.set_share("owner", Share(min_tokens=48))
    loop.generate(prompt(1, 46), greedy(3), namespace="owner", tenant="owner")
    for number in range(2):
        ask(loop, "borrower", number + 5, 39, greedy(40))
    while loop.allocator.num_free:
        loop.step()
    assert loop.scheduler.num_running == 2
    owner = ask(loop, "owner", 9, 48, greedy(1))
    loop.step()
    assert len(loop.tokens[owner]) == 1, "it gives up its own cached tokens, and nobody else's promise stands before"
    loop.run()


def test_nobody_is_retracted_who_has_nothing_to_give(stepper: Make, greedy: Make) -> None:
    """What the full one runs is within its minimum: over it are only cached tokens, which can be had without."""
    loop = stepper(num_slots=120, prefill_budget=256)
    loop.generate(prompt(1, 56), greedy(2), namespace="full", tenant="full")
    loop.scheduler.set_share("full", Share(min_tokens=50))
    loop.scheduler.set_share("owner", Share(min_tokens=70))
    running = [ask(loop, "full", number, 10, greedy(5)) for number in (2, 3, 4)]
    loop.step()
    owner = ask(loop, "owner", 5, 69, greedy(2))
    loop.step()
    assert loop.stats.snapshot().preemptions == 0
    assert len(loop.tokens[owner]) == 1, "what the full one still needs it has within its own minimum"
    loop.run()
    assert {loop.finished[one].finish_reason for one in (*running, owner)} == {"length"}


def test_requests_cancelled_while_all_wait_for_them_are_paid_for(stepper: Make, greedy: Make) -> None:
    """It had the turn, and the batch ran empty for it: cancelled just before, it would cost nothing and could be repeated."""
    loop = stepper(num_slots=200, prefill_budget=256, policy="vtc")
    ask(loop, "worker", 1, 60, greedy(60))
    loop.step()
    blocking = ask(loop, "hostile", 2, 150, greedy(1))
    loop.step()
    loop.scheduler.cancel(blocking)
    loop.step()
    before = ask(loop, "hostile", 3, 10, greedy(1))
    after = ask(loop, "worker", 4, 10, greedy(1))
    loop.scheduler._waiting.line_up(loop.scheduler._running)
    assert loop.scheduler._waiting.peek().request_id == after, "of 60 and 150 served the lower is next"
    loop.run()
    assert len(loop.tokens[before]) == 1


def test_a_refund_saves_nothing_up() -> None:
    policy = DeficitLongestPrefix(lambda tenant: 1.0)
    policy.charge("hostile", 10 * QUANTUM)
    policy._begin_round(50)
    policy.charge("hostile", -10 * QUANTUM)
    assert policy._account("hostile").deficit <= QUANTUM


def test_better_hits_of_others_do_not_starve_the_oldest(stepper: Make, greedy: Make) -> None:
    loop = stepper()
    ask(loop, "plain", 1, 10, greedy(1))
    for number in range(2 * MAX_OVERTAKEN):
        ask(loop, "hits", number, 10, greedy(1))
    loop.scheduler._waiting.line_up(())
    lines = loop.scheduler._waiting._lines
    policy = LongestPrefix()
    chosen = []
    for _ in range(MAX_OVERTAKEN + 1):
        sequence = policy.choose(lines, lambda sequence: 5 if sequence.tenant == "hits" else 0)
        lines[sequence.tenant].remove(sequence)
        chosen.append(sequence.tenant)
        if sequence.tenant == "plain":
            break
    assert chosen.index("plain") == MAX_OVERTAKEN
