"""The calls that wait: generate and stream, for threads and for asyncio, on top of `submit` and `cancel`.

In: prompts as text or token ids. Out: RequestOutputs in the order of the prompts, or events as they come. How many requests
of these callers run or wait at once is bounded here (`max_concurrent_requests`); more callers wait for their turn.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from infer_engine.errors import InvalidRequestError
from infer_engine.model.tokenizer import Tokenizer
from infer_engine.request import Event, FinishedEvent, RequestOutput, SamplingParams, TokenLogprob, TokensEvent

Prompt = str | Sequence[int]


class Permits:
    """A first-come-first-served semaphore for threads and event loops alike: a permit is a future."""

    def __init__(self, num_permits: int) -> None:
        self._mutex = threading.Lock()
        self._num_free = num_permits
        self._waiting: deque[Future[None]] = deque()

    def acquire(self) -> None:
        permit = self._request()
        try:
            permit.result()
        except BaseException:  # KeyboardInterrupt, say
            self._give_up(permit)
            raise

    async def acquire_async(self) -> None:
        permit = self._request()
        try:
            await asyncio.wrap_future(permit)
        except BaseException:
            self._give_up(permit)
            raise

    def release(self) -> None:
        with self._mutex:
            while self._waiting:
                permit = self._waiting.popleft()
                if permit.set_running_or_notify_cancel():
                    break
            else:
                self._num_free += 1
                return
        permit.set_result(None)

    def _request(self) -> Future[None]:
        permit: Future[None] = Future()
        with self._mutex:
            if self._num_free == 0:
                self._waiting.append(permit)
                return permit
            self._num_free -= 1
        permit.set_result(None)
        return permit

    def _give_up(self, permit: Future[None]) -> None:
        if not permit.cancel():  # granted meanwhile: the next may have it
            self.release()


class Submit(Protocol):
    def __call__(
        self,
        token_ids: Sequence[int],
        params: SamplingParams,
        *,
        namespace: str,
        tenant: str,
        deadline: float | None,
        with_text: bool,
        on_event: Callable[[Event], None],
    ) -> int: ...


class Options(NamedTuple):
    namespace: str
    tenant: str
    deadline: float | None


class Calls:
    def __init__(
        self, submit: Submit, cancel: Callable[[int], None], tokenizer: Tokenizer | None, max_concurrent_requests: int
    ) -> None:
        self._submit = submit
        self._cancel = cancel
        self._tokenizer = tokenizer
        self._permits = Permits(max_concurrent_requests)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams], options: Options
    ) -> list[RequestOutput]:
        started: list[_Collector] = []
        try:
            for prompt, prompt_params in _pairs(prompts, params):
                token_ids = self._encode(prompt)
                self._permits.acquire()
                started.append(self._start_collecting(token_ids, prompt_params, options))
            return [collector.output(collector.finished.result(), self._tokenizer) for collector in started]
        except BaseException:
            self._cancel_all(started)
            raise

    async def agenerate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams], options: Options
    ) -> list[RequestOutput]:
        started: list[_Collector] = []
        try:
            for prompt, prompt_params in _pairs(prompts, params):
                token_ids = await self._encode_async(prompt)
                await self._permits.acquire_async()
                started.append(self._start_collecting(token_ids, prompt_params, options))
            return [
                collector.output(await asyncio.wrap_future(collector.finished), self._tokenizer)
                for collector in started
            ]
        except BaseException:
            self._cancel_all(started)
            raise

    def stream(self, prompt: Prompt, params: SamplingParams, options: Options) -> Iterator[Event]:
        token_ids = self._encode(prompt)
        self._permits.acquire()
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request_id = self._start(token_ids, params, options, events.put, with_text=self._tokenizer is not None)
        is_finished = False
        try:
            while not is_finished:
                event = events.get()
                is_finished = isinstance(event, FinishedEvent)
                yield event
        finally:
            if not is_finished:
                self._cancel(request_id)

    async def astream(self, prompt: Prompt, params: SamplingParams, options: Options) -> AsyncIterator[Event]:
        token_ids = await self._encode_async(prompt)
        await self._permits.acquire_async()
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def on_event(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        request_id = self._start(token_ids, params, options, on_event, with_text=self._tokenizer is not None)
        is_finished = False
        try:
            while not is_finished:
                event = await events.get()
                is_finished = isinstance(event, FinishedEvent)
                yield event
        finally:
            if not is_finished:
                self._cancel(request_id)

    def _start_collecting(self, token_ids: Sequence[int], params: SamplingParams, options: Options) -> _Collector:
        # Without stop strings the text is made at the end, in the caller's thread
        collector = _Collector(params)
        with_text = bool(params.stop) and self._tokenizer is not None
        collector.request_id = self._start(token_ids, params, options, collector.on_event, with_text=with_text)
        return collector

    def _start(
        self,
        token_ids: Sequence[int],
        params: SamplingParams,
        options: Options,
        on_event: Callable[[Event], None],
        *,
        with_text: bool,
    ) -> int:
        """Submit with a permit in hand; it goes back with the last event, or at once if the request is refused."""

        def deliver(event: Event) -> None:
            if isinstance(event, FinishedEvent):
                self._permits.release()
            on_event(event)

        try:
            return self._submit(
                token_ids,
                params,
                namespace=options.namespace,
                tenant=options.tenant,
                deadline=options.deadline,
                with_text=with_text,
                on_event=deliver,
            )
        except BaseException:
            self._permits.release()
            raise

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self._tokenizer is None:
            raise InvalidRequestError("prompt: got text, but this engine's model has no tokenizer; give token ids")
        return self._tokenizer.encode(prompt)

    async def _encode_async(self, prompt: Prompt) -> Sequence[int]:
        """Long texts take milliseconds to tokenise, which the event loop must not."""
        return await asyncio.to_thread(self._encode, prompt) if isinstance(prompt, str) else prompt

    def _cancel_all(self, collectors: Sequence[_Collector]) -> None:
        for collector in collectors:
            self._cancel(collector.request_id)


class _Collector:
    """One request's events, gathered. `on_event` runs in the engine's thread, the rest in the caller's."""

    def __init__(self, params: SamplingParams) -> None:
        self.request_id = 0
        self.finished: Future[FinishedEvent] = Future()
        self._params = params
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._text = ""

    def on_event(self, event: Event) -> None:
        if isinstance(event, TokensEvent):
            self._token_ids += event.token_ids
            self._logprobs += event.logprobs or ()
            self._text += event.text or ""
        elif self.finished.set_running_or_notify_cancel():  # False: an awaiting task was cancelled
            self.finished.set_result(event)

    def output(self, finished: FinishedEvent, tokenizer: Tokenizer | None) -> RequestOutput:
        return RequestOutput(
            token_ids=tuple(self._token_ids),
            text=None if tokenizer is None else self._whole_text(finished, tokenizer),
            finish_reason=finished.finish_reason,
            logprobs=None if self._params.logprobs is None else tuple(self._logprobs),
            usage=finished.usage,
            error=finished.error,
        )

    def _whole_text(self, finished: FinishedEvent, tokenizer: Tokenizer) -> str:
        if self._params.stop:
            return self._text
        # Without stop strings, "stop" means that the last token is a stop token, which is no text
        return tokenizer.decode(self._token_ids[:-1] if finished.finish_reason == "stop" else self._token_ids)


def _pairs(prompts: Any, params: SamplingParams | Sequence[SamplingParams]) -> list[tuple[Prompt, SamplingParams]]:
    if isinstance(prompts, str):
        prompts = [prompts]
    if len(prompts) == 0:
        raise InvalidRequestError("prompts: got none; give one prompt or a list of prompts")
    if not isinstance(prompts[0], str) and not hasattr(prompts[0], "__len__"):
        prompts = [prompts]  # one prompt of token ids
    if isinstance(params, SamplingParams):
        params = [params] * len(prompts)
    for given in params:
        if not isinstance(given, SamplingParams):
            raise InvalidRequestError(f"params: got {given!r}; must be SamplingParams, one or one per prompt")
    if len(params) != len(prompts):
        raise InvalidRequestError(f"params: got {len(params)} for {len(prompts)} prompts; give one, or one per prompt")
    return list(zip(prompts, params, strict=True))
