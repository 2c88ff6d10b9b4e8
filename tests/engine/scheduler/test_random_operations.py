"""Random submissions, cancellations, failures, deadlines and namespace drops on a pool that is too small for them.

After each step every slot must have one owner, and every token that comes must be the one that the model says.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from infer_engine.config import Share

Make = Callable[..., Any]
NUM_STEPS = 2_500
NUM_STEPS_SOAK = 250_000


def random_prompt(rng: random.Random, earlier: list[list[int]]) -> list[int]:
    """Often a continuation of an earlier one, sometimes the same one, else new."""
    own = [rng.randrange(95) for _ in range(rng.randint(1, 24))]
    if earlier and rng.random() < 0.7:
        prefix = rng.choice(earlier[-12:])
        prefix = prefix[: rng.randint(1, len(prefix))]
        return prefix if rng.random() < 0.3 else [*prefix, *own][:60]
    return own


def random_share(rng: random.Random, num_slots: int) -> Share:
    """The minima of three tenants together fit the pool; a maximum takes the longest prompt and its output."""
    return Share(
        min_tokens=rng.choice((0, 0, num_slots // 5, num_slots // 3)),
        max_tokens=rng.choice((None, None, num_slots, num_slots * 2 // 3)),
        weight=rng.choice((0.5, 1.0, 3.0)),
        insert=rng.random() < 0.8,
    )


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, {"num_slots": 96, "max_batch_size": 6, "prefill_budget": 16}),
        (2, {"num_slots": 64, "max_batch_size": 8, "prefill_budget": 8}),
        (3, {"num_slots": 300, "max_batch_size": 4, "prefill_budget": 100}),
        (4, {"num_slots": 80, "max_batch_size": 5, "prefill_budget": 5, "use_cache": False}),
        (5, {"num_slots": 120, "max_batch_size": 6, "prefill_budget": 32, "policy": "vtc"}),
        (6, {"num_slots": 120, "max_batch_size": 6, "prefill_budget": 32, "policy": "lpm"}),
    ],
)
def test_no_operation_loses_a_slot_or_a_token(
    stepper: Make,
    continuation: Make,
    greedy: Make,
    poison: int,
    is_soak: bool,
    seed: int,
    options: dict[str, Any],
) -> None:
    rng = random.Random(seed)
    loop = stepper(**options)
    asked: dict[int, tuple[list[int], Any]] = {}
    prompts: list[list[int]] = []
    for _ in range(NUM_STEPS_SOAK // 4 if is_soak else NUM_STEPS):
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
            if loop.scheduler.num_waiting > 10:
                break
            prompt = random_prompt(rng, prompts)
            prompts.append(prompt)
            if rng.random() < 0.02:
                prompt = [*prompt, poison]
            params = greedy(rng.randint(1, 40), ignore_eos=rng.random() < 0.5)
            namespace = rng.choice(("a", "a", "b", "c"))
            deadline = loop.now + rng.random() if rng.random() < 0.05 else None
            request_id = loop.submit(prompt, params, namespace=namespace, tenant=namespace, deadline=deadline)
            asked[request_id] = (prompt, params)
        if asked and rng.random() < 0.05:
            loop.scheduler.cancel(rng.choice(list(asked)))
        if rng.random() < 0.005:
            loop.model.fail_next = True
        if rng.random() < 0.01:
            loop.scheduler.set_share(rng.choice("abc"), random_share(rng, options["num_slots"]))
        if rng.random() < 0.01:
            loop.scheduler.drop_namespace(rng.choice("abc"))
            loop.scheduler.check_integrity()
        loop.step()
        forget_finished(loop, asked, continuation, poison)
        check_usage(loop)
    loop.run()
    forget_finished(loop, asked, continuation, poison)
    assert not asked
    assert loop.cache.num_protected_tokens == 0
    assert loop.allocator.num_free + loop.cache.num_tokens == options["num_slots"]
    if options.get("use_cache", True):
        stats = loop.stats.snapshot()
        assert stats.preemptions > 0 or options["num_slots"] >= 300
        assert stats.cache_hits > 0


def forget_finished(loop: Any, asked: dict[int, tuple[list[int], Any]], continuation: Make, poison: int) -> None:
    for request_id, event in list(loop.finished.items()):
        prompt, params = asked.pop(request_id)
        tokens = loop.tokens.pop(request_id)
        del loop.finished[request_id]
        if poison in prompt:
            assert event.finish_reason not in ("stop", "length")
            continue
        expected = continuation(prompt, params.max_tokens, params.ignore_eos)
        if event.finish_reason in ("stop", "length"):
            assert tokens == expected
        else:
            assert tokens == expected[: len(tokens)]


def check_usage(loop: Any) -> None:
    """Tenants hold together what is in use, except for what a dropped namespace still pins under a name used again."""
    usage = loop.scheduler.tenant_usage()
    assert sum(tenant.kv_tokens for tenant in usage.values()) == loop.scheduler.gauges().pool_used_tokens
    assert all(group.num_cross_evicted_tokens == 0 for group in loop.cache.shares.groups())
