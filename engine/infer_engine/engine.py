"""InferenceEngine: a model, its KV pool and its scheduler behind one thread. `step()` is the place to begin reading.

In: prompts as text or token ids, from any thread or event loop. Out: events per request, and outputs made of them.

Who owns what: the engine's own thread runs the step loop and is the single writer of scheduler, ledger, cache and allocator.
Callers touch the waiting queue, the loop's commands and the counters, each behind a short mutex; the model is behind a mutex
of its own. Events are delivered from the engine's thread at the end of a step, when the counters are up to date.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from infer_engine.cache import RadixCache
from infer_engine.calls import Calls, Options, Prompt
from infer_engine.compute import Compute, model_failure
from infer_engine.config import EngineConfig, Share
from infer_engine.errors import ConfigError, EngineClosedError, InferEngineError, QueueFullError, RejectedError
from infer_engine.loop import StepLoop
from infer_engine.memory.allocator import SlotAllocator
from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.loader import LoadedModel, Model, check_sizes, load_model
from infer_engine.model.protocol import ModelInfo
from infer_engine.model.sampler import Sampler
from infer_engine.model.tokenizer import Tokenizer
from infer_engine.request import Event, FinishedEvent, RequestOutput, SamplingParams
from infer_engine.scheduler import sequence as scheduling
from infer_engine.scheduler.intake import Intake, TokenIds
from infer_engine.scheduler.scheduler import Scheduler
from infer_engine.stats import EngineStats, StatsRecorder, TenantCacheUsage
from infer_engine.unfinished import Unfinished

logger = logging.getLogger(__name__)

USAGE_COST_SHARE = 0.01
"""While the engine is busy, publishing the tenants' usage may take this share of its time; when it goes idle it is published."""

DEFAULT_PARAMS = SamplingParams()


class InferenceEngine:
    """Thread-safe. `model`: a URI or path, a transformers model, a RaggedModel, or a CacheAwareModel of your own.

    on_step_end: called from the engine's thread after the events of a step, so that a server can send them together.
    start_thread: False leaves the step loop to the caller, who then calls `step()` while `has_work`, from one thread;
        `generate`, `stream` and their asyncio forms need the engine's thread.
    The process is its owner's: one that serves calls `limit_spinning` (cpu.py) before torch is imported, and `gc.freeze()` once
    the engine is there, as full collections would walk its 400,000 objects in the middle of a step.
    Raises ConfigError or ModelLoadError.
    """

    def __init__(
        self,
        model: Model,
        config: EngineConfig | None = None,
        *,
        on_step_end: Callable[[], None] | None = None,
        start_thread: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config = config or EngineConfig()
        self._loaded: LoadedModel = load_model(model, config)
        check_sizes(config, self.info)
        self.max_model_len = _max_model_len(config, self.info)
        """Prompt and output of one request together."""
        self._clock = clock
        self._on_step_end = on_step_end
        self._pool = _new_pool(config, self.info)
        sampler = Sampler()
        self._compute = Compute(self._loaded.model, self._pool, sampler)
        self._stats = StatsRecorder()
        self._scheduler = _new_scheduler(config, self.max_model_len, self._stats, clock)
        self._stats.set_gauges(self._scheduler.gauges())
        self._intake = Intake(
            self.info, self.tokenizer, sampler, self.max_model_len, config.max_cache_tokens, config.default_max_tokens
        )
        self._calls = Calls(self.submit, self.cancel, self.tokenizer, config.max_concurrent_requests)
        self._request_ids = itertools.count(1)
        self._queue_mutex = threading.Lock()  # guards _unfinished, and makes "is there room" and "add" one move
        self._unfinished = Unfinished(config.max_batch_size, config.max_queue_size)
        self._tenant_usage: dict[str, TenantCacheUsage] = {}  # replaced as a whole by the step loop
        self._next_usage_at = 0.0
        self._loop = StepLoop(
            step=self.step,
            has_work=lambda: self.has_work,
            next_due=lambda: self._scheduler.next_due,
            num_waiting=lambda: self._scheduler.num_waiting,
            on_end=self._end_everything,
            gather_s=config.schedule_interval_ms / 1e3,
            gather_until=min(config.max_batch_size, config.max_concurrent_requests),
        )
        if start_thread:
            self._loop.start()

    # ---- the step ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Schedule, forward, sample, update; then tell the callers. Called by the step loop only."""
        started_at = self._clock()
        batch = self._scheduler.schedule()
        self._overwrite_freed()
        if batch is not None:
            try:
                logits = self._compute.forward(batch)
                sampled = self._compute.sample(batch, logits)
            except Exception as error:
                logger.exception("the model failed in a step of %d sequences", len(batch.works))
                self._scheduler.abort(batch, model_failure(error))
            else:
                self._scheduler.update(batch, sampled)
            self._overwrite_freed()  # who ends may have been the last for long
            seconds = self._clock() - started_at
            self._stats.record_step(seconds, batch.num_prefill_tokens, batch.num_decode_tokens)
        self._publish()
        self._deliver()

    def _publish(self) -> None:
        """Counters and usage as of this step, before its events: who has seen an event also sees it counted."""
        self._stats.set_gauges(self._scheduler.gauges())
        now = self._clock()
        if now >= self._next_usage_at or not self._scheduler.has_work:
            self._tenant_usage = self._scheduler.tenant_usage()
            self._next_usage_at = now + (self._clock() - now) / USAGE_COST_SHARE

    def _deliver(self) -> None:
        events = self._scheduler.take_events()
        for sequence, event in events:
            if isinstance(event, FinishedEvent):
                with self._queue_mutex:  # who has seen the event finds room for another request
                    self._unfinished.remove(sequence.request_id)
            _tell(sequence, event, self._scheduler.cancel)
        if events:
            self._tell_step_end()

    def _tell_step_end(self) -> None:
        if self._on_step_end is not None:
            try:
                self._on_step_end()
            except Exception:
                logger.exception("on_step_end failed")

    # ---- requests ------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] = DEFAULT_PARAMS,
        *,
        namespace: str = "",
        tenant: str = "",
        deadline: float | None = None,
    ) -> list[RequestOutput]:
        """One output per prompt, in order; blocks until all are done.

        `params`: one for all prompts, or one each. An output whose request failed has finish_reason "error" and `error`.
        Raises InvalidRequestError, QueueFullError or EngineClosedError where a prompt is refused; the others are cancelled.
        """
        return self._calls.generate(prompts, params, Options(namespace, tenant, deadline))

    async def agenerate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] = DEFAULT_PARAMS,
        *,
        namespace: str = "",
        tenant: str = "",
        deadline: float | None = None,
    ) -> list[RequestOutput]:
        """`generate` for asyncio; cancelling the task cancels the requests."""
        return await self._calls.agenerate(prompts, params, Options(namespace, tenant, deadline))

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams = DEFAULT_PARAMS,
        *,
        namespace: str = "",
        tenant: str = "",
        deadline: float | None = None,
    ) -> Iterator[Event]:
        """Events as they come, a FinishedEvent last. It starts with the first `next`; closing it cancels the request."""
        return self._calls.stream(prompt, params, Options(namespace, tenant, deadline))

    def astream(
        self,
        prompt: Prompt,
        params: SamplingParams = DEFAULT_PARAMS,
        *,
        namespace: str = "",
        tenant: str = "",
        deadline: float | None = None,
    ) -> AsyncIterator[Event]:
        """`stream` for asyncio."""
        return self._calls.astream(prompt, params, Options(namespace, tenant, deadline))

    def submit(
        self,
        token_ids: TokenIds,
        params: SamplingParams,
        *,
        namespace: str = "",
        tenant: str = "",
        deadline: float | None = None,
        with_text: bool = False,
        on_event: Callable[[Event], None],
    ) -> int:
        """Queue a request and return its id, for `cancel`. Never blocks on the model.

        deadline: seconds of the engine's clock (time.monotonic). with_text: TokensEvents carry text.
        on_event: called from the engine's thread, possibly before this returns; it must be quick, and one that raises
            cancels its request.
        Raises InvalidRequestError, EngineClosedError, QueueFullError: max_batch_size + max_queue_size requests are unfinished,
        and the tenant has its part of them.
        """
        try:
            sequence = self._intake.new_sequence(
                next(self._request_ids),
                token_ids,
                params,
                namespace=namespace,
                tenant=tenant,
                deadline=deadline,
                with_text=with_text,
                submitted_at=self._clock(),
                on_event=on_event,
            )
            self._enqueue(sequence)
        except (RejectedError, QueueFullError):
            self._stats.record_rejected()
            raise
        self._loop.wake()
        return sequence.request_id

    def _enqueue(self, sequence: scheduling.Sequence) -> None:
        with self._queue_mutex:
            if self._loop.is_closing:
                raise EngineClosedError("the engine is closed: it takes no more requests")
            self._unfinished.add(sequence)
            self._stats.record_accepted()
            self._scheduler.add(sequence)

    def cancel(self, request_id: int) -> None:
        """End a request at the next step; it still gets its FinishedEvent. An unknown or finished id is no error."""
        self._scheduler.cancel(request_id)

    # ---- the whole -----------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        return self._loaded.model.info

    @property
    def loaded(self) -> LoadedModel:
        """The model with its tokenizer, directory and revision."""
        return self._loaded

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._loaded.tokenizer

    @property
    def kv_layout(self) -> str:
        """dtype and layout of the KV pool."""
        return self._pool.layout

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def is_closed(self) -> bool:
        """It takes no more requests: from the first `close` on, and after the step loop broke down."""
        return self._loop.is_closing

    @property
    def has_ended(self) -> bool:
        """Closed, and every request has had its FinishedEvent."""
        return self._loop.has_ended

    def engine_stats(self) -> EngineStats:
        return self._stats.snapshot()

    async def aengine_stats(self) -> EngineStats:
        return self._stats.snapshot()

    def cache_usage_by_tenant(self) -> dict[str, TenantCacheUsage]:
        """As the step loop last published it: at the latest when it goes idle."""
        return dict(self._tenant_usage)

    def drop_namespace(self, namespace: str) -> None:
        """Forget a namespace's cached prompts. The requests that it has now go on and leave nothing behind.

        Acts between two steps.
        """

        def drop() -> None:
            self._scheduler.drop_namespace(namespace)
            self._overwrite_freed()
            self._publish()

        self._loop.call(drop)

    def drop_tenant(self, tenant: str) -> int:
        """Forget a tenant's share and all that it has cached, and overwrite it; how many cached tokens that were.

        What its running requests still hold is overwritten when they end. Acts between two steps.
        """
        num_dropped = 0

        def drop() -> None:
            nonlocal num_dropped
            num_dropped = self._scheduler.drop_tenant(tenant)
            self._overwrite_freed()
            self._publish()

        self._loop.call(drop)
        return num_dropped

    def _overwrite_freed(self) -> None:
        self._compute.zero(self._scheduler.ledger.take_slots_to_zero())

    def set_shares(self, shares: Mapping[str, Share]) -> None:
        """What each of these tenants may have of the pool and of the computing. Others keep theirs; nobody's is `Share()`.

        Acts between two steps.
        """

        def set_all() -> None:
            for tenant, share in shares.items():
                self._scheduler.set_share(tenant, share)

        self._loop.call(set_all)

    def check_integrity(self) -> None:
        """Between two steps: raises AssertionError if a slot is lost or owned twice. For tests; it walks everything."""
        self._loop.call(self._scheduler.check_integrity)

    def close(self, drain: bool = False) -> None:
        """Take no more requests; with `drain` finish those there are, else end them with EngineClosedError. Idempotent."""
        with self._queue_mutex:  # no request slips in after the last look
            self._loop.begin_close(drain=drain)
        self._loop.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_everything(self, failure: BaseException | None) -> None:
        """The loop's last act. After a failure the scheduler's state is not to be trusted, the callers must hear all the same."""
        if failure is None:
            closed = EngineClosedError("the engine was closed before this request was done")
            self._scheduler.end_all("error", closed)
            self._publish()
            self._deliver()
            return
        broken = InferEngineError(f"the engine broke down ({type(failure).__name__}); its log has the details")
        with self._queue_mutex:
            unfinished = self._unfinished.take_all()
        for sequence in unfinished:
            self._stats.record_finished("error")
            _tell(sequence, FinishedEvent("error", sequence.usage(), 0.0, broken), lambda request_id: None)
        self._tell_step_end()


def _new_scheduler(
    config: EngineConfig, max_model_len: int, stats: StatsRecorder, clock: Callable[[], float]
) -> Scheduler:
    return Scheduler(
        RadixCache(config.eviction_policy),
        SlotAllocator(config.max_cache_tokens),
        max_batch_size=min(config.max_batch_size, config.max_concurrent_requests),
        max_sequence_tokens=min(max_model_len, config.max_cache_tokens),
        prefill_budget=config.chunked_prefill_tokens,
        use_cache=config.prefix_cache,
        stats=stats,
        policy=config.scheduling_policy,
        clock=clock,
    )


def _new_pool(config: EngineConfig, info: ModelInfo) -> KVPool:
    return KVPool(info.num_layers, config.max_cache_tokens, info.num_kv_heads, info.head_dim, info.dtype, info.device)


def _max_model_len(config: EngineConfig, info: ModelInfo) -> int:
    if config.max_model_len is None:
        return info.max_model_len
    if config.max_model_len > info.max_model_len:
        raise ConfigError(
            f"max_model_len: got {config.max_model_len}; the model {info.name} was made for at most {info.max_model_len}"
        )
    return config.max_model_len


def _tell(sequence: scheduling.Sequence, event: Event, cancel: Callable[[int], None]) -> None:
    try:
        sequence.on_event(event)
    except KeyboardInterrupt:
        raise  # without an engine's thread it is the caller's
    except BaseException:  # a SystemExit or CancelledError of one listener is no concern of the others
        logger.exception("the listener of request %d failed; it is cancelled", sequence.request_id)
        cancel(sequence.request_id)
