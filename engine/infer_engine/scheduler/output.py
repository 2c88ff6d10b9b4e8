"""What a request has said so far, and whether it is done.

In: one sampled token at a time. Out: the event for the caller, and a finish reason with the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer_engine.request import FinishReason, SamplingParams, TokenLogprob, TokensEvent

if TYPE_CHECKING:
    from infer_engine.model.tokenizer import TextStream


class Output:
    """Stop conditions of one request, checked in this order: stop token, stop string, length.

    A stop token is part of `token_ids` and of no text; a stop string is part of `token_ids` only.
    """

    __slots__ = ("_max_tokens", "_num_tokens", "_stop_token_ids", "_text")

    def __init__(
        self, params: SamplingParams, eos_token_ids: frozenset[int], max_tokens: int, text: TextStream | None
    ) -> None:
        self._stop_token_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_token_ids)
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._text = text

    def push(self, token_id: int, logprob: TokenLogprob | None) -> tuple[TokensEvent, FinishReason | None]:
        self._num_tokens += 1
        text = None if self._text is None else ""
        reason: FinishReason | None = None
        if token_id in self._stop_token_ids:
            reason = "stop"
        elif self._text is not None:
            delta = self._text.push([token_id])
            text = delta.text
            if delta.stopped:
                self._text = None  # nothing may follow the stop string
                reason = "stop"
        if reason is None and self._num_tokens >= self._max_tokens:
            reason = "length"
        if reason is not None and self._text is not None:
            text = (text or "") + self._text.finish()
        return TokensEvent((token_id,), None if logprob is None else (logprob,), text), reason

    def flush(self) -> TokensEvent | None:
        """Text that was held back (half a character, the beginning of a stop string), for a request that ends early."""
        held = "" if self._text is None else self._text.finish()
        return TokensEvent((), None, held) if held else None
