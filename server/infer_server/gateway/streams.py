"""One request's output: engine messages in, client messages out.

Token ids go out exactly once and in order, text only when it is whole UTF-8 and can't be the beginning of a stop string.
Ids wait for their text, so that each TOK has something to show; the last TOK carries whatever is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Generic, TypeVar

from infer_engine.model.tokenizer import TextStream
from infer_server import ipc
from infer_server.protocol import Tok

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Many put, one takes all that has come, in order. A slow taker thus gets larger portions, not more of them."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._arrived = asyncio.Event()

    def put(self, item: T) -> None:
        self._items.append(item)
        self._arrived.set()

    async def take(self) -> list[T]:
        await self._arrived.wait()
        self._arrived.clear()
        items, self._items = self._items, []
        return items


class OutputStream:
    """`push` engine messages, then `next_tok` whatever can be shown. Owned by one request's task."""

    def __init__(self, text: TextStream, stop_token_ids: Collection[int] = ()) -> None:
        """stop_token_ids end the output, and are no text."""
        self._text = text
        self._stop_token_ids = stop_token_ids
        self._pending_text: list[str] = []
        self._pending_ids: list[int] = []
        self._pending_logprobs: list[dict[str, Any]] = []
        self._next_seq = 0
        self.num_tokens = 0
        """Output tokens accepted: those up to the stop string, where one was found."""
        self.stopped = False
        """A stop string was found; what comes after it is not accepted."""

    def push(self, message: ipc.Tokens) -> None:
        if self.stopped:
            return
        self._pending_ids += message.token_ids
        self.num_tokens += len(message.token_ids)
        if message.logprobs is not None:
            self._pending_logprobs += [_logprob(*entry) for entry in message.logprobs]
        delta = self._text.push([id for id in message.token_ids if id not in self._stop_token_ids])
        self._pending_text.append(delta.text)
        self.stopped = delta.stopped

    def next_tok(self) -> Tok | None:
        """What is readable by now, with all token ids up to here; None while no new text is readable."""
        return self._take() if any(self._pending_text) else None

    def last_tok(self) -> Tok | None:
        """The rest, at the end: also text held back as a possible stop string, and ids without text."""
        if not self.stopped:
            self._pending_text.append(self._text.finish())
        return self._take() if self._pending_ids or any(self._pending_text) else None

    def _take(self) -> Tok:
        tok = Tok(
            seq=self._next_seq,
            text="".join(self._pending_text),
            token_ids=self._pending_ids,
            logprobs=self._pending_logprobs or None,
        )
        self._next_seq += 1
        self._pending_text, self._pending_ids, self._pending_logprobs = [], [], []
        return tok


def _logprob(token_id: int, logprob: float, top: list[tuple[int, float]]) -> dict[str, Any]:
    alternatives = [{"token_id": other, "logprob": value} for other, value in top]
    return {"token_id": token_id, "logprob": logprob, "top": alternatives}
