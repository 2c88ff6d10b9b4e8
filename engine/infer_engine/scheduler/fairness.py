"""Whose turn it is: the order in which tenants' waiting requests are admitted, and what each tenant was served.

In: the requests that wait, a line for each tenant; what was computed for whom. Out: the next request to admit, and of several
tenants the one that has had most. Pure arithmetic; only the step loop calls it.

Service is counted in cost: PROMPT_COST for each prompt token that was computed (one from the cache costs nothing), OUTPUT_COST
for each output token, divided by the tenant's weight. Recomputation after a preemption is nobody's cost.

    fcfs   first come, first served; tenants mean nothing
    lpm    longest cached prefix first; tenants mean nothing (RadixAttention, arXiv:2312.07104)
    vtc    the tenant that was served least (virtual token counters, arXiv:2401.00588)
    dlpm   longest cached prefix first, among tenants that have not used up their quantum (deficit longest prefix match,
           arXiv:2501.14312): hits within a tenant's turn, and a bound on how far tenants drift apart
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from infer_engine.config import SchedulingPolicy
from infer_engine.scheduler.lines import MAX_OVERTAKEN, Line
from infer_engine.scheduler.sequence import Sequence

PROMPT_COST = 1.0
OUTPUT_COST = 2.0
"""An output token takes a step of its own, in which the whole of the weights is read."""

QUANTUM = 2000.0
"""Cost that a tenant of weight 1 may run up in its turn: larger gives more hits, smaller a tighter bound."""

Lines = Mapping[str, Line]
"""tenant -> what of it waits; no line is empty"""
Matched = Callable[[Sequence], int]
"""How many leading tokens of a request are in the prefix cache now."""


class AdmissionPolicy(Protocol):
    def choose(self, lines: Lines, matched: Matched) -> Sequence:
        """The next to admit, of at least one line. Asked again only when that one was admitted or has ended."""
        ...

    def joined(self, tenant: str, active: Collection[str]) -> None:
        """`tenant` has work again; `active`: the others that have some."""
        ...

    def charge(self, tenant: str, cost: float) -> None:
        """`cost` was spent on it, or will be (negative: was not after all)."""
        ...

    def most_served(self, tenants: Iterable[str]) -> str | None:
        """Whose request is preempted when one must be; None: tenants mean nothing here."""
        ...


class FirstCome:
    """O(tenants) a choice."""

    def choose(self, lines: Lines, matched: Matched) -> Sequence:
        return min((line.first for line in lines.values()), key=_age)

    def joined(self, tenant: str, active: Collection[str]) -> None:
        pass

    def charge(self, tenant: str, cost: float) -> None:
        pass

    def most_served(self, tenants: Iterable[str]) -> str | None:
        return None


class LongestPrefix(FirstCome):
    """O(candidates) matches a choice; of equals, the oldest. At most MAX_OVERTAKEN in a row go before the oldest of all."""

    def __init__(self) -> None:
        self._num_overtaken = 0

    def choose(self, lines: Lines, matched: Matched) -> Sequence:
        oldest = super().choose(lines, matched)
        chosen = oldest if self._num_overtaken >= MAX_OVERTAKEN else _longest(lines.values(), matched)
        self._num_overtaken = 0 if chosen is oldest else self._num_overtaken + 1
        return chosen


class VirtualTokenCounter:
    """O(tenants) a choice."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._served: dict[str, float] = {}

    def choose(self, lines: Lines, matched: Matched) -> Sequence:
        tenant = min(lines, key=lambda tenant: (self._served.get(tenant, 0.0), _age(lines[tenant].first)))
        return lines[tenant].first

    def joined(self, tenant: str, active: Collection[str]) -> None:
        """Idle time is not saved up: it goes on from where the least served of the others stands."""
        if not active:
            return
        lowest = min(self._served.get(other, 0.0) for other in active)
        self._served = {name: served for name, served in self._served.items() if served > lowest or name in active}
        self._served.setdefault(tenant, lowest)

    def charge(self, tenant: str, cost: float) -> None:
        self._served[tenant] = self._served.get(tenant, 0.0) + cost / self._weight(tenant)

    def most_served(self, tenants: Iterable[str]) -> str | None:
        return max(tenants, key=lambda tenant: self._served.get(tenant, 0.0))


class DeficitLongestPrefix:
    """O(candidates of tenants in turn) matches a choice, O(tenants) a new round.

    Service goes in rounds, and each tenant may spend one quantum in each. Its deficit is what it has left of this round's, less
    what it overspent before. Tenants with some left are served; when of those that wait none has, the next round begins.
    What is left of a round is not saved, what was overspent is remembered: so no deficit exceeds one quantum, one who was
    idle gains nothing by it, and one who comes in the middle of a round is served at once.
    """

    def __init__(self, weight: Callable[[str], float], quantum: float = QUANTUM) -> None:
        self._weight = weight
        self._quantum = quantum
        self._round = 0
        self._accounts: dict[str, _Account] = {}

    def choose(self, lines: Lines, matched: Matched) -> Sequence:
        in_turn = self._in_turn(lines)
        if not in_turn:
            least_debt = max(self._account(tenant).deficit for tenant in lines)
            self._begin_round(self._round + 1 + math.floor(-least_debt / self._quantum))
            in_turn = self._in_turn(lines)
        return _longest(in_turn, matched)

    def _in_turn(self, lines: Lines) -> list[Line]:
        return [line for tenant, line in lines.items() if self._account(tenant).deficit > 0]

    def _account(self, tenant: str) -> _Account:
        """With this round's quantum in it."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account(0.0, self._round - 1)
        if account.round < self._round:
            account.deficit = self._after(account, self._round - 1) + self._quantum
            account.round = self._round
        return account

    def _after(self, account: _Account, round: int) -> float:
        """What is left of its debt at the end of that round."""
        return min(0.0, account.deficit + (round - account.round) * self._quantum)

    def _begin_round(self, round: int) -> None:
        """Whose debt is paid by now needs no account."""
        self._round = round
        self._accounts = {
            tenant: account for tenant, account in self._accounts.items() if self._after(account, round - 1) < 0
        }

    def joined(self, tenant: str, active: Collection[str]) -> None:
        pass

    def charge(self, tenant: str, cost: float) -> None:
        account = self._account(tenant)
        account.deficit = min(self._quantum, account.deficit - cost / self._weight(tenant))

    def most_served(self, tenants: Iterable[str]) -> str | None:
        return min(tenants, key=lambda tenant: self._account(tenant).deficit)


@dataclass(slots=True)
class _Account:
    deficit: float
    """cost divided by weight"""
    round: int
    """for which it has had its quantum"""


def _age(sequence: Sequence) -> int:
    return sequence.request_id


def _longest(lines: Collection[Line], matched: Matched) -> Sequence:
    """Of equals the oldest. But first those that were promised it."""
    best: Sequence | None = None
    best_rank = (False, 0, 0)
    for line in lines:
        candidates, is_due = ((line.first,), True) if line.first_is_due else (line.candidates(), False)
        for candidate in candidates:
            rank = (is_due, 0 if is_due else matched(candidate), -_age(candidate))
            if best is None or rank > best_rank:
                best, best_rank = candidate, rank
    assert best is not None, "no line is empty"
    return best


POLICIES: dict[SchedulingPolicy, Callable[[Callable[[str], float]], AdmissionPolicy]] = {
    "dlpm": DeficitLongestPrefix,
    "fcfs": lambda weight: FirstCome(),
    "lpm": lambda weight: LongestPrefix(),
    "vtc": VirtualTokenCounter,
}


def make_policy(name: SchedulingPolicy, weight: Callable[[str], float]) -> AdmissionPolicy:
    """`weight` of a tenant, above 0."""
    return POLICIES[name](weight)
