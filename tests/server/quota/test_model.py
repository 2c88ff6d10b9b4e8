"""The quota functions against an oracle in plain Python, step by step, on a clock that the test sets.

The oracle keeps every request it ever saw and counts from scratch at each question, where the store keeps running sums. Rates
are whole tokens per millisecond, so that both compute the buckets exactly.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from infer_server.quota import DuplicateRequest, EmbeddedStore, QuotaDenied, QuotaLimits, QuotaStore, Use
from infer_server.quota.connection import connect

LEASE_MS, HOLD_MS, KEEP_MS, BATCH = 10_000, 20_000, 600_000, 16
TOKEN_RATE, TOKEN_BURST = 1, 900  # a millisecond; at once
LIMITS = QuotaLimits(
    tokens_per_minute=60_000 * TOKEN_RATE,
    tokens_burst=TOKEN_BURST,
    max_concurrent_requests=4,
    tokens_per_day=3_000,
    tokens_per_month=5_000,
    cached_token_weight=0.5,
)


@dataclass
class Request:
    prompt: int
    estimate: int
    day: str
    month: str
    expiry: int
    report: int | None = None
    charged: int | None = None
    swept: bool = False
    forget_at: int = 0


class Oracle:
    def __init__(self, now: int) -> None:
        self.now = now
        self.requests: dict[str, Request] = {}
        self.forgotten: list[Request] = []
        self.level, self.at = TOKEN_BURST, now
        self.gone: set[str] = set()
        self.latest = ""

    def windows(self) -> tuple[str, str]:
        moment = datetime.fromtimestamp(self.now / 1000, UTC)
        return f"{moment:%Y%m%d}", f"{moment:%Y%m}"

    def used(self, window: str) -> int:
        every = [*self.requests.values(), *self.forgotten]
        return sum(r.charged or 0 for r in every if window in (r.day, r.month))

    def reserved(self, window: str) -> int:
        return sum(r.estimate for r in self.requests.values() if window in (r.day, r.month) and r.charged is None)

    def live(self) -> int:
        return sum(r.charged is None and r.expiry > self.now for r in self.requests.values())

    def held(self) -> int:
        return sum(r.charged is None and r.expiry <= self.now for r in self.requests.values())

    def tokens(self) -> int:
        self.level = min(TOKEN_BURST, self.level + (self.now - self.at) * TOKEN_RATE)
        self.at = self.now
        return self.level

    def reserve(self, name: str, prompt: int, output: int) -> set[str]:
        """The reasons to deny; empty: admitted."""
        estimate = prompt + output
        old = self.requests.get(name)
        if old is not None:
            same = old.charged is None and old.estimate == estimate and old.expiry > self.now
            return set() if same else {"duplicate"}
        if estimate > TOKEN_BURST:
            return {"too_large"}
        self.sweep(BATCH)
        day, month = self.windows()
        reasons = {
            "concurrency": self.live() >= 4,
            "tokens_per_minute": self.tokens() < estimate,
            "tokens_per_day": self.used(day) + self.reserved(day) + estimate > 3_000,
            "tokens_per_month": self.used(month) + self.reserved(month) + estimate > 5_000,
        }
        if not any(reasons.values()):
            self.requests[name] = Request(prompt, estimate, day, month, self.now + LEASE_MS)
            self.level -= estimate
        return {reason for reason, applies in reasons.items() if applies}

    def settle(self, name: str, price: int) -> tuple[int, int]:
        request = self.requests.get(name)
        if request is None:
            return 0, price
        if request.charged is None:
            self.close(request, price)
            return request.charged or 0, max(0, price - request.estimate)
        if not request.swept:
            return request.charged, 0
        missing = max(0, min(price, request.estimate) - request.charged)
        room_day = 3_000 - self.used(request.day) - self.reserved(request.day) if self.kept(request.day) else 0
        room_month = 5_000 - self.used(request.month) - self.reserved(request.month) if self.kept(request.month) else 0
        extra = min(missing, room_day, room_month)
        self.level = max(0, self.tokens() - extra)
        request.charged += extra
        request.swept = False
        return request.charged, missing - extra

    def kept(self, window: str) -> bool:
        return window not in self.gone

    def roll(self) -> None:
        """With the first request of a later day, past windows are forgotten unless something is reserved in them."""
        day, month = self.windows()
        if self.latest == day:
            return
        self.latest = day
        seen = {w for r in [*self.requests.values(), *self.forgotten] for w in (r.day, r.month)} - {day, month}
        self.gone |= {window for window in seen if self.reserved(window) == 0}

    def close(self, request: Request, price: int) -> None:
        request.charged = min(price, request.estimate)
        request.forget_at = self.now + KEEP_MS
        self.level = min(TOKEN_BURST, self.tokens() + request.estimate - request.charged)

    def sweep(self, most: int) -> int:
        due = [(r.expiry, n) for n, r in self.requests.items() if r.charged is None and r.expiry + HOLD_MS <= self.now]
        for _, name in sorted(due)[:most]:
            request = self.requests[name]
            self.close(request, request.prompt if request.report is None else request.report)
            request.swept = True
        old = [(r.forget_at, n) for n, r in self.requests.items() if r.charged is not None and r.forget_at <= self.now]
        for _, name in sorted(old)[:most]:
            self.forgotten.append(self.requests.pop(name))
        return min(len(due), most)


class Machine(RuleBasedStateMachine):
    """Its class attributes come from the test below, which owns the server and the clock."""

    runner: asyncio.Runner
    store: QuotaStore
    clock: object

    def __init__(self) -> None:
        super().__init__()
        self.clock.set(datetime(2026, 3, 31, 23, 59, tzinfo=UTC))  # type: ignore[attr-defined]
        self.tenant = f"local/model/{uuid.uuid4().hex[:12]}"
        self.oracle = Oracle(self.clock.now)  # type: ignore[attr-defined]
        self.names: list[str] = []
        self.runner.run(self.store.set_limits(self.tenant, LIMITS))

    @rule(prompt=st.integers(1, 500), output=st.integers(0, 500))
    def reserve(self, prompt: int, output: int) -> None:
        self.names.append(f"r{len(self.names)}")
        self.check_reserve(self.names[-1], prompt, output)

    @precondition(lambda self: self.names)
    @rule(data=st.data(), change=st.sampled_from([0, 0, 1]))
    def reserve_again(self, data: st.DataObject, change: int) -> None:
        name = data.draw(st.sampled_from(self.names[-6:]))
        known = self.oracle.requests.get(name)
        prompt, output = (known.prompt, known.estimate - known.prompt + change) if known else (5, 5)
        self.check_reserve(name, prompt, output)

    def check_reserve(self, name: str, prompt: int, output: int) -> None:
        known = name in self.oracle.requests
        reasons = self.oracle.reserve(name, prompt, output)
        if not known and not reasons:
            self.oracle.roll()
        try:
            self.runner.run(self.store.reserve(self.tenant, name, prompt_tokens=prompt, max_tokens=output))
        except QuotaDenied as denied:
            assert denied.reason in reasons, (denied, reasons)  # noqa: PT017
        except DuplicateRequest:
            assert reasons == {"duplicate"}
        else:
            assert not reasons

    @precondition(lambda self: self.names)
    @rule(data=st.data(), computed=st.integers(0, 300), cached=st.integers(0, 300), output=st.integers(0, 500))
    def settle(self, data: st.DataObject, computed: int, cached: int, output: int) -> None:
        name = data.draw(st.sampled_from([*self.names[-8:], "stranger"]))
        expected = self.oracle.settle(name, computed + (cached + 1) // 2 + output)
        outcome = self.runner.run(self.store.settle(self.tenant, name, Use(computed, cached, output)))
        assert (outcome.charged_tokens, outcome.uncharged_tokens) == expected

    @precondition(lambda self: self.names)
    @rule(data=st.data(), computed=st.integers(0, 300))
    def renew(self, data: st.DataObject, computed: int) -> None:
        names = data.draw(st.lists(st.sampled_from(self.names[-8:]), unique=True))
        lost = set()
        for name in names:
            request = self.oracle.requests.get(name)
            if request is None or request.charged is not None or request.expiry <= self.oracle.now:
                lost.add(name)
            else:
                request.expiry = self.oracle.now + LEASE_MS
                request.report = max(request.report or 0, min(computed, request.estimate))
        assert self.runner.run(self.store.renew(self.tenant, {name: Use(computed) for name in names})).lost == lost

    @rule(most=st.sampled_from([1, 3, 100]))
    def sweep(self, most: int) -> None:
        assert self.runner.run(self.store.sweep(self.tenant, most=most)) == self.oracle.sweep(most)

    @rule(ms=st.sampled_from([1, 50, 300, 1_000, 9_999, 10_000, 20_000, 30_000, 600_000, 86_400_000]))
    def time_goes_by(self, ms: int) -> None:
        self.clock.advance(ms)  # type: ignore[attr-defined]
        self.oracle.now += ms

    @invariant()
    def both_agree(self) -> None:
        usage = self.runner.run(self.store.usage(self.tenant))
        oracle = self.oracle
        day, month = oracle.windows()
        assert (usage.day.name, usage.month.name) == (day, month)
        assert (usage.day.used, usage.day.reserved) == (oracle.used(day), oracle.reserved(day))
        assert (usage.month.used, usage.month.reserved) == (oracle.used(month), oracle.reserved(month))
        assert usage.day.used + usage.day.reserved <= 3_000
        assert usage.month.used + usage.month.reserved <= 5_000
        assert (usage.live, usage.held) == (oracle.live(), oracle.held())
        assert usage.tokens is not None
        assert usage.tokens.left == oracle.tokens()


@pytest.fixture
def machine(clocked_valkey: EmbeddedStore, clock: object, clocked_library: str) -> Iterator[type[Machine]]:
    with asyncio.Runner() as runner:
        connection = connect(clocked_valkey.url, timeout_seconds=5)
        store = QuotaStore(
            connection, lease_seconds=LEASE_MS / 1000, hold_seconds=HOLD_MS / 1000, library_code=clocked_library
        )
        runner.run(store.load_library())
        yield type("BoundMachine", (Machine,), {"runner": runner, "store": store, "clock": clock})
        runner.run(connection.client.aclose())


def test_the_store_agrees_with_the_oracle(machine: type[Machine], soak: bool) -> None:
    profile = settings(
        max_examples=2_000 if soak else 60,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=profile)
