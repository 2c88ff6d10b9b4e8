"""The client for asyncio: the same calls, awaited. Any implementation of its event loop will do."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self, Unpack

from infer_server.client._base import BaseClient, BaseStream
from infer_server.client._errors import Timeout
from infer_server.client._results import Completion, Delta, Event, Params, request_of
from infer_server.protocol import Generate


class AsyncStream(BaseStream):
    """Iterate it for the deltas, in the event loop that it was made in."""

    def __init__(self, client: AsyncClient, request: Generate, timeout: float | None, whole: bool = False) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        loop, put = asyncio.get_running_loop(), self._events.put_nowait

        def sink(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(put, event)
            except RuntimeError:
                return  # the loop is closed, so nobody waits

        super().__init__(client, request, sink, timeout, whole)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._over:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(self._patience()):
                event = await self._events.get()
        except TimeoutError:
            self.close()
            raise Timeout(f"not within {self._timeout:g} s; the request was cancelled") from None
        delta = self._take(event)
        if delta is None:
            raise StopAsyncIteration
        return delta

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(BaseClient):
    """May be shared by tasks."""

    async def generate(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the same call as the one for threads
        **params: Unpack[Params],
    ) -> Completion:
        """The whole answer. Give one of `prompt`, `messages` and `token_ids`. timeout: seconds for all of it."""
        async with AsyncStream(self, request_of(prompt, params), timeout, whole=True) as stream:
            async for _ in stream:
                continue
            return stream._completion()

    def stream(
        self, prompt: str | None = None, *, timeout: float | None = None, **params: Unpack[Params]
    ) -> AsyncStream:
        """The answer as it is made; call it in the event loop. timeout: seconds that may pass without anything new."""
        return AsyncStream(self, request_of(prompt, params), timeout)

    async def close(self) -> None:
        """What is under way fails with ConnectionLost."""
        await asyncio.to_thread(self._session.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
