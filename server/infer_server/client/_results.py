"""A request's answer as it arrives and as a whole; the same for threads and asyncio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec

from infer_server.client._errors import InferError, Rejected
from infer_server.protocol import End, Generate, Usage


class Params(TypedDict, total=False):
    """Everything a request may say besides its prompt; each has the meaning of the field in protocol.Generate."""

    messages: Sequence[dict[str, str]]
    token_ids: Sequence[int]
    model: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    seed: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int
    deadline_ms: int
    cache_salt: str


def request_of(prompt: str | None, params: Params) -> Generate:
    """Raises Rejected, naming the field, before anything is sent."""
    unknown = params.keys() - set(Generate.__struct_fields__)
    if unknown:
        raise TypeError(
            f"unknown parameter {', '.join(sorted(unknown))}; known are {', '.join(Params.__annotations__)}"
        )
    try:
        return msgspec.convert({"prompt": prompt, **params}, Generate)
    except msgspec.ValidationError as error:
        raise Rejected("bad_request", str(error)) from error


@dataclass(frozen=True, slots=True)
class Delta:
    """What came since the one before. `text` is always whole characters, and may be empty."""

    text: str
    token_ids: list[int]
    logprobs: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    token_ids: list[int]
    finish_reason: str
    usage: Usage
    logprobs: list[dict[str, Any]] | None
    ttft_ms: float | None
    """from the call to the first token, as this client saw it; None where there was none"""


Event = Delta | End | InferError
