"""Which sequences compute what in each step, and what becomes of them afterwards.

In: requests (`add`, `cancel`, from any thread) and, per step, what was sampled. Out: a `ScheduledBatch` to compute and the
events to deliver. All else is called by the step loop alone, so nothing here takes a lock.

    schedule   end what was cancelled or is overdue; decodes first, then prefill chunks, then admissions in the policy's order
    update     append tokens, share prompts, end what is done
    abort      the model failed: end every sequence of the batch, give all slots back

Shortage: a sequence that gets no slot first retracts others that are not yet in the step's batch, of the tenant that was served
most the youngest (their prefix stays in the cache, they wait at the front of their line). One whose own turn it is sits the
step out: those before it still move, so the batch is not empty. One that is alone and gets nothing can never go on, and ends
with `out_of_kv_slots`.

One that waits for room keeps its turn, and the others wait for it, except (a few) whose tenants' minima have room for them. It
pays for its turn also if it is cancelled before it runs; and it ends at once if others' minima leave no room for it ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from infer_engine.config import SchedulingPolicy, Share
from infer_engine.errors import InferEngineError
from infer_engine.request import Event, FinishedEvent, FinishReason
from infer_engine.scheduler.admission import WaitingQueue
from infer_engine.scheduler.batch import ScheduledBatch, Work, build_batch
from infer_engine.scheduler.fairness import OUTPUT_COST, PROMPT_COST, make_policy
from infer_engine.scheduler.integrity import check_running
from infer_engine.scheduler.ledger import SlotLedger, Verdict
from infer_engine.scheduler.preemption import Preemption
from infer_engine.scheduler.sequence import Sequence
from infer_engine.stats import Gauges, StatsRecorder, TenantCacheUsage

if TYPE_CHECKING:
    from infer_engine.cache import RadixCache
    from infer_engine.memory.allocator import SlotAllocator
    from infer_engine.model.sampler import SampledToken


class Scheduler:
    """`clock` gives monotonic seconds, the same as requests' deadlines."""

    def __init__(
        self,
        cache: RadixCache,
        allocator: SlotAllocator,
        *,
        max_batch_size: int,
        max_sequence_tokens: int,
        prefill_budget: int,
        use_cache: bool,
        stats: StatsRecorder,
        policy: SchedulingPolicy = "dlpm",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._allocator = allocator
        self._ledger = SlotLedger(
            cache, allocator, max_sequences=max_batch_size, max_tokens=max_sequence_tokens, use_cache=use_cache
        )
        self._prefill_budget = prefill_budget
        self._use_cache = use_cache
        self._stats = stats
        self._clock = clock
        self._policy = make_policy(policy, lambda tenant: cache.shares[tenant].share.weight)
        self._preemption = Preemption(self._ledger.group, self._policy.most_served)
        self._waiting = WaitingQueue(self._policy, self._ledger.num_matched)
        self._running: list[Sequence] = []  # oldest admission first
        self._blocking: Sequence | None = None  # waits for room in the pool, and the others for it
        self._cancelled: set[int] = set()
        self._cancelled_mutex = threading.Lock()
        self._events: list[tuple[Sequence, Event]] = []
        self._next_expiry: dict[str, float] = {}  # of tenants with a time to live

    # ---- any thread ----------------------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        self._waiting.push(sequence)

    def cancel(self, request_id: int) -> None:
        """Takes effect at the next step; an unknown or finished request is left alone."""
        with self._cancelled_mutex:
            self._cancelled.add(request_id)

    @property
    def next_due(self) -> float | None:
        """When a step is due though there is no work; None: never."""
        return min(
            (at for tenant, at in self._next_expiry.items() if self._cache.shares[tenant].num_tokens), default=None
        )

    @property
    def has_work(self) -> bool:
        return bool(self._running) or len(self._waiting) > 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    # ---- the step loop -------------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def ledger(self) -> SlotLedger:
        return self._ledger

    def schedule(self) -> ScheduledBatch | None:
        """The step's work, or None if there is nothing to compute."""
        self._cache.now = now = self._clock()
        cancelled = self._take_cancelled()  # before the arrivals: who was cancelled has arrived, and is found in line
        self._waiting.line_up(self._running)
        self._end_early(cancelled, now)
        self._expire(now)
        self._reclaim()
        works = self._select()
        while not works and self._running:  # each waits for slots that nobody will free
            self._end_running(self._running[0], "error", self._out_of_slots(self._running[0]), keep=True)
            works = self._select()
        return build_batch(works) if works else None

    def _select(self) -> list[Work]:
        works: list[Work] = []
        num_retracted = self._schedule_decodes(works)
        budget, more_retracted = self._schedule_prefills(works)
        if not num_retracted and not more_retracted:  # or the retracted would come back at once
            self._admit_waiting(works, budget)
        return works

    def update(self, batch: ScheduledBatch, sampled: list[SampledToken | None]) -> None:
        """`sampled[i]` belongs to `batch.works[i]`: None for a chunk that is not the last, else a token or an error."""
        now = self._clock()
        ttft_s: list[float] = []
        itl_s: list[float] = []
        for work, token in zip(batch.works, sampled, strict=True):
            sequence = work.sequence
            if token is not None and token.error is not None:
                self._end_running(sequence, "error", token.error, keep=False)  # K/V that may be bad is not shared
                continue
            was_prefilling = sequence.is_prefilling
            self._ledger.commit(sequence)
            if was_prefilling:
                self._ledger.share(sequence)
            if token is not None:
                if sequence.last_token_at is None:
                    ttft_s.append(now - sequence.submitted_at)
                else:
                    itl_s.append(now - sequence.last_token_at)
                sequence.last_token_at = now
                self._policy.charge(sequence.tenant, OUTPUT_COST)
                self._append(sequence, token)
        self._stats.record_tokens(ttft_s, itl_s)

    def abort(self, batch: ScheduledBatch, error: Exception) -> None:
        for work in batch.works:
            self._end_running(work.sequence, "error", error, keep=False)

    def end_all(self, reason: FinishReason, error: Exception | None) -> None:
        """Between steps: end every request, running or waiting."""
        for sequence in list(self._running):
            self._end_running(sequence, reason, error, keep=True)
        self._waiting.line_up(())
        for sequence in self._waiting:
            self._waiting.remove(sequence)
            self._end(sequence, reason, error)

    def set_share(self, tenant: str, share: Share) -> None:
        """Of the pool and of what is computed. What it holds above a lower maximum goes as its requests end."""
        self._cache.shares[tenant].share = share
        if share.ttl_seconds is None:
            self._next_expiry.pop(tenant, None)
        else:
            self._next_expiry[tenant] = self._clock()

    def drop_namespace(self, namespace: str) -> None:
        # Those that wait, too: one that was preempted would fill the new namespace of that name with what it had in the old
        self._ledger.drop_namespace(namespace, [*self._running, *self._waiting])

    def drop_tenant(self, tenant: str) -> int:
        """Forget its namespaces and its share, and overwrite what it had; how many cached tokens that were.

        What its running requests hold goes when they end.
        """
        group = self._cache.shares[tenant]
        self.set_share(tenant, Share(zero_on_free=True))
        before = group.num_evicted["purge"]
        unfinished = [*self._running, *self._waiting]
        for sequence in unfinished:
            if sequence.tenant == tenant:
                sequence.may_share = False
        for namespace in self._cache.namespaces_of(group):
            self._ledger.drop_namespace(namespace, unfinished)
        return group.num_evicted["purge"] - before

    def take_events(self) -> list[tuple[Sequence, Event]]:
        """What is to be delivered, in order; each event is handed out once."""
        events, self._events = self._events, []
        return events

    def gauges(self) -> Gauges:
        return Gauges(
            pool_tokens=self._allocator.num_slots,
            pool_used_tokens=self._allocator.num_slots - self._allocator.num_free,
            cached_tokens=self._cache.num_tokens,
            evicted_tokens=sum(group.num_evicted_tokens for group in self._cache.shares.groups()),
            running_requests=len(self._running),
            waiting_requests=len(self._waiting),
        )

    def tenant_usage(self) -> dict[str, TenantCacheUsage]:
        """O(tenants)."""
        return {
            group.name: TenantCacheUsage(
                lookup_tokens=group.num_looked_up_tokens,
                hit_tokens=group.num_hit_tokens,
                kv_tokens=group.num_held,
                evicted_tokens=group.num_evicted_tokens,
                evicted_by_cause=dict(group.num_evicted),
                cross_evicted_tokens=group.num_cross_evicted_tokens,
            )
            for group in self._cache.shares.groups()
        }

    def check_integrity(self) -> None:
        """Between steps: every slot has exactly one owner, and more (scheduler/integrity.py). Raises AssertionError."""
        check_running(self._running, self._ledger, self._cache, self._allocator)

    # ---- schedule ------------------------------------------------------------------------------------------------

    def _expire(self, now: float) -> None:
        for tenant, at in self._next_expiry.items():
            ttl = self._cache.shares[tenant].share.ttl_seconds
            if at <= now and ttl is not None:
                self._ledger.expire(self._cache.shares[tenant], now - ttl)
                self._next_expiry[tenant] = now + ttl / 8

    def _take_cancelled(self) -> set[int]:
        with self._cancelled_mutex:
            cancelled, self._cancelled = self._cancelled, set()
        return cancelled

    def _end_early(self, cancelled: set[int], now: float) -> None:
        for sequence in [*self._running, *self._waiting]:
            reason: FinishReason
            if sequence.request_id in cancelled:
                reason = "cancelled"
            elif sequence.deadline is not None and sequence.deadline <= now:
                reason = "deadline"
            else:
                continue
            is_blocking = sequence is self._blocking
            if self._waiting.remove(sequence):
                if is_blocking and sequence.admitted_at is None:  # else it could be done again for nothing
                    self._policy.charge(sequence.tenant, PROMPT_COST * sequence.num_prompt_tokens)
                self._end(sequence, reason, None)
            else:
                self._end_running(sequence, reason, None, keep=True)

    def _schedule_decodes(self, works: list[Work]) -> int:
        """One token of every sequence whose prefill is done, oldest first; how many sequences were retracted for it."""
        num_retracted = 0
        for sequence in [running for running in self._running if not running.is_prefilling]:
            if sequence in self._running:  # not retracted meanwhile
                num_retracted += self._schedule_one(sequence, 1, works)
        return num_retracted

    def _schedule_prefills(self, works: list[Work]) -> tuple[int, int]:
        """Chunks of admitted prompts, oldest first, as far as the token budget goes: (budget left, retracted)."""
        budget = self._prefill_budget
        num_retracted = 0
        for sequence in [running for running in self._running if running.is_prefilling]:
            if budget and sequence in self._running:
                before = len(works)
                num_retracted += self._schedule_one(sequence, min(budget, sequence.num_pending), works)
                budget -= sum(work.num_tokens for work in works[before:])
        return budget, num_retracted

    def _schedule_one(self, sequence: Sequence, num_wanted: int, works: list[Work]) -> int:
        """Add the sequence to the step with as many of the wanted tokens as there are slots; how many were retracted."""
        num_retracted = 0
        while (num_given := self._ledger.grow(sequence, num_wanted)) == 0:
            scheduled = {work.sequence.request_id for work in works}
            candidates = [one for one in self._running if one.request_id not in scheduled]
            victim = self._preemption.victim(sequence, candidates)
            if victim is sequence:
                return num_retracted  # sits this step out
            self._retract(victim)
            num_retracted += 1
        works.append(Work(sequence, num_given, self._ledger.context(sequence, sequence.num_slots)))
        return num_retracted

    def _reclaim(self) -> None:
        """A request that its tenant's minimum has room for is admitted, whoever must be retracted for it."""
        sequence = self._waiting.peek()
        if sequence is not None and sequence is self._blocking:
            self._waiting.prefer_one(self._ledger.has_room_in_minimum)
            sequence = self._waiting.peek()
        while sequence is not None and self._ledger.num_missing(sequence, self._promised()) > 0:
            giver = self._preemption.giver(self._running, sequence.tenant)
            if giver is None:
                return
            self._retract(giver)

    def _promised(self) -> dict[str, int]:
        """What admitted prefills still need, and one token of each running sequence."""
        promised: dict[str, int] = {}
        for running in self._running:
            num = max(1, running.num_tokens - running.num_slots)
            promised[running.tenant] = promised.get(running.tenant, 0) + num
        return promised

    def _retract(self, sequence: Sequence) -> None:
        """Preempt: its computed prefix stays in the cache, its output is kept, and it is the next to be admitted."""
        self._running.remove(sequence)
        self._ledger.release(sequence, keep=True)
        self._waiting.put_back(sequence)
        self._stats.record_preemption()

    def _admit_waiting(self, works: list[Work], budget: int) -> None:
        """Admit while there is a row, budget, and room for the whole of what is known of the next request."""
        promised = self._promised()
        self._blocking = None
        while budget and self._ledger.num_free_rows:
            sequence = self._waiting.peek()
            if sequence is None:
                return
            verdict = self._ledger.admit(sequence, promised)
            if verdict is Verdict.ADMITTED:
                budget -= self._begin(sequence, budget, works)
                num_left = max(1, sequence.num_tokens - sequence.num_slots)
                promised[sequence.tenant] = promised.get(sequence.tenant, 0) + num_left
            elif self._never_fits(sequence, verdict):
                self._waiting.remove(sequence)
                self._end(sequence, "error", self._out_of_slots(sequence))
            elif verdict is Verdict.SHARE_FULL:
                self._waiting.pass_over(sequence)
            else:
                self._blocking = sequence
                return

    def _never_fits(self, sequence: Sequence, verdict: Verdict) -> bool:
        """All that may be evicted for it is, and to wait would not help."""
        if verdict is Verdict.SHARE_FULL:
            return not any(running.tenant == sequence.tenant for running in self._running)
        return not self._running or self._ledger.is_hopeless(sequence)

    def _begin(self, sequence: Sequence, budget: int, works: list[Work]) -> int:
        """The first chunk of an admitted request; how many tokens it has."""
        self._waiting.remove(sequence)
        self._running.append(sequence)
        self._record_admission(sequence)
        self._schedule_one(sequence, min(budget, sequence.num_pending), works)
        return sequence.num_slots - sequence.num_computed

    def _record_admission(self, sequence: Sequence) -> None:
        if sequence.admitted_at is not None:
            return  # it comes back from a preemption
        sequence.admitted_at = self._clock()
        sequence.num_cached_tokens = sequence.num_computed
        self._policy.charge(sequence.tenant, PROMPT_COST * (sequence.num_prompt_tokens - sequence.num_computed))
        self._stats.record_admitted(sequence.admitted_at - sequence.submitted_at)
        if self._use_cache:
            self._stats.record_lookup(sequence.num_computed, sequence.num_prompt_tokens - sequence.num_computed)

    def _out_of_slots(self, sequence: Sequence) -> InferEngineError:
        share = self._ledger.group(sequence).share
        what = f"the KV pool has {self._allocator.num_slots} slots" + (
            "" if share.max_tokens is None else f", of which its tenant may hold {share.max_tokens}"
        )
        return InferEngineError(
            f"the request can't grow beyond {sequence.num_tokens} tokens: {what}; ask for less output, or raise max_cache_tokens",
            code="out_of_kv_slots",
        )

    # ---- update --------------------------------------------------------------------------------------------------

    def _append(self, sequence: Sequence, token: SampledToken) -> None:
        sequence.token_ids[sequence.num_tokens] = token.token_id
        sequence.num_tokens += 1
        event, reason = sequence.output.push(token.token_id, token.logprob)
        self._events.append((sequence, event))
        if reason is not None:
            self._end_running(sequence, reason, None, keep=True)

    def _end_running(self, sequence: Sequence, reason: FinishReason, error: Exception | None, *, keep: bool) -> None:
        self._running.remove(sequence)
        self._policy.charge(sequence.tenant, -PROMPT_COST * (sequence.num_prompt_tokens - sequence.num_prompt_done))
        self._ledger.release(sequence, keep=keep)
        self._end(sequence, reason, error)

    def _end(self, sequence: Sequence, reason: FinishReason, error: Exception | None) -> None:
        if reason not in ("stop", "length") and (held := sequence.output.flush()) is not None:
            self._events.append((sequence, held))
        until = self._clock() if sequence.admitted_at is None else sequence.admitted_at
        queue_ms = (until - sequence.submitted_at) * 1e3
        self._events.append((sequence, FinishedEvent(reason, sequence.usage(), queue_ms, error)))
        self._stats.record_finished(reason)
