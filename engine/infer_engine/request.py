"""What a caller gives the engine and what it gets back: plain frozen values, the same for threads, asyncio and the server."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NewType

from infer_engine.errors import InvalidRequestError

TenantId = NewType("TenantId", str)
Namespace = NewType("Namespace", str)

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How output tokens are chosen. Every field is checked on construction; a wrong one raises InvalidRequestError.

    max_tokens: None means the engine's `default_max_tokens`.
    temperature: 0 is greedy. top_p, top_k (0: off), min_p restrict the distribution, in that order of meaning after temperature.
    seed: the request's own generator; its tokens do not depend on its neighbours in a batch.
    stop: strings that end the output; they are not part of it.
    logprobs: None, or how many alternatives (0: only the chosen token's) to report per token, natural log.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _require_int("max_tokens", self.max_tokens, low=1)
        _require_number("temperature", self.temperature, low=0.0, high=100.0)
        _require_number("top_p", self.top_p, low=0.0, high=1.0, open_low=True)
        _require_int("top_k", self.top_k, low=0)
        _require_number("min_p", self.min_p, low=0.0, high=1.0)
        _require_number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        _require_number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        _require_number("repetition_penalty", self.repetition_penalty, low=0.0, high=10.0, open_low=True)
        if self.seed is not None:
            _require_int("seed", self.seed, low=0, high=2**63 - 1)
        if self.logprobs is not None:
            _require_int("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS)
        stop: object = self.stop
        if isinstance(stop, str):
            raise InvalidRequestError(f"stop: got the string {stop!r}; give a list of strings")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"stop: got {len(self.stop)} strings; at most {MAX_STOP_STRINGS} are allowed")
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
                given = f"{len(text)} characters" if isinstance(text, str) else repr(text)
                raise InvalidRequestError(
                    f"stop: each must be a string of 1 to {MAX_STOP_LENGTH} characters, got {given}"
                )
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequestError(
                f"stop_token_ids: got {len(self.stop_token_ids)}; at most {MAX_STOP_TOKEN_IDS} are allowed"
            )
        for token_id in self.stop_token_ids:
            _require_int("stop_token_ids", token_id, low=0)


def _require_int(field: str, value: object, *, low: int, high: int | None = None) -> None:
    allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise InvalidRequestError(f"{field}: got {value!r}; must be {allowed}")


def _require_number(field: str, value: object, *, low: float, high: float, open_low: bool = False) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and (low < value if open_low else low <= value) and value <= high:  # type: ignore[operator]
        return
    bound = "greater than" if open_low else "at least"
    raise InvalidRequestError(f"{field}: got {value!r}; must be a finite number, {bound} {low} and at most {high}")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of the chosen token under the distribution before temperature, and the best alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """prompt_tokens = cached_tokens (read from the prefix cache) + those computed; output_tokens were generated.

    Where a request ended before its first output token, prompt_tokens are those that were computed or read until then.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class RequestOutput:
    token_ids: tuple[int, ...]
    text: str | None
    """None where the engine has no tokenizer."""
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    usage: Usage
    error: Exception | None = None
    """Why, where the finish reason is "error". What was generated before is kept."""


@dataclass(frozen=True, slots=True)
class TokensEvent:
    """Output tokens of one request, in order. `text` is what became readable (None without a tokenizer)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """The last event of a request, also of one that failed: `error` then says why, and `finish_reason` is "error"."""

    finish_reason: FinishReason
    usage: Usage
    queue_ms: float
    error: Exception | None = None


Event = TokensEvent | FinishedEvent
