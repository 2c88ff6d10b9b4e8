"""The client for threads: plain calls and plain iteration."""

from __future__ import annotations

import queue
from types import TracebackType
from typing import Self, Unpack

from infer_server.client._base import BaseClient, BaseStream
from infer_server.client._errors import Timeout
from infer_server.client._results import Completion, Delta, Event, Params, request_of
from infer_server.protocol import Generate


class Stream(BaseStream):
    """Iterate it for the deltas."""

    def __init__(self, client: Client, request: Generate, timeout: float | None, whole: bool = False) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        super().__init__(client, request, self._events.put, timeout, whole)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        if self._over:
            raise StopIteration
        try:
            event = self._events.get(timeout=self._patience())
        except queue.Empty:
            self.close()
            raise Timeout(f"not within {self._timeout:g} s; the request was cancelled") from None
        delta = self._take(event)
        if delta is None:
            raise StopIteration
        return delta

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Client(BaseClient):
    """May be shared by threads."""

    def generate(
        self, prompt: str | None = None, *, timeout: float | None = None, **params: Unpack[Params]
    ) -> Completion:
        """The whole answer. Give one of `prompt`, `messages` and `token_ids`. timeout: seconds for all of it."""
        with Stream(self, request_of(prompt, params), timeout, whole=True) as stream:
            for _ in stream:
                continue
            return stream._completion()

    def stream(self, prompt: str | None = None, *, timeout: float | None = None, **params: Unpack[Params]) -> Stream:
        """The answer as it is made. timeout: seconds that may pass without anything new."""
        return Stream(self, request_of(prompt, params), timeout)

    def close(self) -> None:
        """What is under way fails with ConnectionLost."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
