"""What a tenant's share of the pool means when others want the room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infer_engine.config import Share
from infer_engine.errors import ConfigError

Make = Callable[..., Any]


def prompt(number: int, length: int) -> list[int]:
    return [(number * 17 + index * 5) % 90 for index in range(length)]


def held(loop: Any, tenant: str) -> int:
    usage = loop.scheduler.tenant_usage()
    return int(usage[tenant].kv_tokens) if tenant in usage else 0


def ask(loop: Any, tenant: str, number: int, length: int, params: Any) -> int:
    return int(loop.submit(prompt(number, length), params, namespace=tenant, tenant=tenant))


def test_a_flood_leaves_a_guaranteed_prefix_alone(stepper: Make, greedy: Make) -> None:
    loop = stepper(num_slots=128)
    loop.scheduler.set_share("quiet", Share(min_tokens=48))
    loop.generate(prompt(1, 40), greedy(4), namespace="quiet", tenant="quiet")
    for number in range(30):
        ask(loop, "loud", number, 50, greedy(20))
    loop.run()
    again = loop.generate(prompt(1, 40), greedy(4), namespace="quiet", tenant="quiet")
    assert len(again) == 4
    assert loop.cached(max(loop.finished)) == 39
    assert loop.scheduler.tenant_usage()["loud"].evicted_tokens > 0


def test_without_a_guarantee_the_same_flood_evicts_it(stepper: Make, greedy: Make) -> None:
    loop = stepper(num_slots=128)
    loop.generate(prompt(1, 40), greedy(4), namespace="quiet", tenant="quiet")
    for number in range(30):
        ask(loop, "loud", number, 50, greedy(20))
    loop.run()
    loop.generate(prompt(1, 40), greedy(4), namespace="quiet", tenant="quiet")
    assert loop.cached(max(loop.finished)) == 0


def test_a_minimum_that_others_borrowed_is_given_back_at_once(stepper: Make, continuation: Make, greedy: Make) -> None:
    loop = stepper(num_slots=96, prefill_budget=256)
    loop.scheduler.set_share("owner", Share(min_tokens=60))
    borrowers = [ask(loop, "borrower", number, 30, greedy(12)) for number in range(3)]
    loop.step()
    assert held(loop, "borrower") > 36
    owner = ask(loop, "owner", 9, 50, greedy(6))
    loop.step()
    assert len(loop.tokens[owner]) == 1, "admitted and computed in the next step"
    assert loop.stats.snapshot().preemptions > 0
    loop.run()
    assert loop.tokens[owner] == continuation(prompt(9, 50), 6, ignore_eos=True)
    for number, request_id in enumerate(borrowers):
        assert loop.tokens[request_id] == continuation(prompt(number, 30), 12, ignore_eos=True), "preempted, not lost"


def test_a_tenant_never_holds_more_than_its_maximum(stepper: Make, greedy: Make) -> None:
    loop = stepper(num_slots=256, prefill_budget=256)
    loop.scheduler.set_share("small", Share(max_tokens=60))
    small = [ask(loop, "small", number, 25, greedy(10)) for number in range(6)]
    other = ask(loop, "other", 50, 40, greedy(10))
    loop.step()
    assert len(loop.tokens[other]) == 1, "one who waits for a share of its own is no reason for others to wait"
    while loop.scheduler.has_work:
        loop.step()
        assert held(loop, "small") <= 60
    assert all(loop.finished[request_id].finish_reason == "length" for request_id in small)


def test_a_request_that_can_never_fit_its_share_is_told_so(stepper: Make, continuation: Make, greedy: Make) -> None:
    loop = stepper(num_slots=256)
    loop.scheduler.set_share("small", Share(max_tokens=20))
    too_long = ask(loop, "small", 1, 30, greedy(4))
    grows = ask(loop, "small", 2, 15, greedy(40))
    loop.run()
    for request_id in (too_long, grows):
        assert loop.finished[request_id].error.code == "out_of_kv_slots"
        assert "may hold 20" in str(loop.finished[request_id].error)
    assert loop.tokens[grows] == continuation(prompt(2, 15), 6, ignore_eos=True)


def test_a_lone_request_is_not_helped_out_of_anothers_minimum(stepper: Make, greedy: Make) -> None:
    loop = stepper(num_slots=64)
    loop.scheduler.set_share("owner", Share(min_tokens=40))
    loop.generate(prompt(1, 36), greedy(4), namespace="owner", tenant="owner")
    greedy_one = ask(loop, "other", 2, 20, greedy(40))
    loop.run()
    assert loop.finished[greedy_one].error.code == "out_of_kv_slots"
    assert held(loop, "owner") == 39


def test_who_may_not_insert_leaves_nothing(stepper: Make, continuation: Make, greedy: Make) -> None:
    loop = stepper()
    loop.scheduler.set_share("private", Share(insert=False))
    for _ in range(2):
        tokens = loop.generate(prompt(1, 30), greedy(4), namespace="private", tenant="private")
        assert tokens == continuation(prompt(1, 30), 4, ignore_eos=True)
        assert (held(loop, "private"), loop.cache.num_tokens) == (0, 0)
    assert loop.cached(1) == 0


def test_under_pressure_the_one_most_over_its_share_pays(stepper: Make, greedy: Make) -> None:
    loop = stepper(num_slots=600)
    loop.scheduler.set_share("heavy", Share(weight=3.0))
    for number in range(4):
        loop.generate(prompt(number, 60), greedy(1), namespace="heavy", tenant="heavy")
        loop.generate(prompt(number + 10, 60), greedy(1), namespace="light", tenant="light")
    loop.generate(prompt(30, 300), greedy(1), namespace="new", tenant="new")
    assert held(loop, "heavy") == 240, "a third of its 240 is less than all of light's"
    assert held(loop, "light") <= 240 - (300 - 120)


def test_what_nobody_uses_for_its_time_to_live_goes(stepper: Make, greedy: Make) -> None:
    loop = stepper()
    loop.scheduler.set_share("brief", Share(ttl_seconds=10))
    for tenant in ("brief", "other"):
        loop.generate(prompt(1, 30), greedy(2), namespace=tenant, tenant=tenant)
    loop.now += 6
    loop.generate(prompt(1, 10), greedy(2), namespace="brief", tenant="brief")
    assert loop.cached(2) == 9
    loop.now += 6
    assert loop.scheduler.next_due <= loop.now
    loop.step()
    assert (held(loop, "brief"), held(loop, "other")) == (11, 31), "what was used 6 seconds ago stays"
    loop.now += 12
    loop.step()
    assert (held(loop, "brief"), held(loop, "other")) == (0, 31)
    assert loop.scheduler.next_due is None, "nothing is left to expire"
    assert loop.scheduler.tenant_usage()["brief"].evicted_by_cause["ttl"] == 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_tokens": -1}, "min_tokens: got -1; must be an integer of at least 0"),
        ({"max_tokens": 0}, "max_tokens: got 0; must be an integer of at least 1"),
        ({"min_tokens": 5, "max_tokens": 4}, "max_tokens: got 4; must be at least min_tokens"),
        ({"ttl_seconds": 0}, "ttl_seconds: got 0; must be a number from 1 to 31536000, or None"),
        ({"weight": 0}, "weight: got 0; must be a number from 0.01 to 1000"),
    ],
)
def test_a_wrong_share_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Share(**fields)
