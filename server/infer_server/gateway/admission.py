"""Turns a client's Generate into token ids and sampling parameters, or refuses it with the field that is wrong.

Pure but for the tokenizer, so it runs in a worker thread: a long prompt delays no stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infer_engine.errors import InvalidRequestError
from infer_engine.model.tokenizer import Tokenizer
from infer_engine.request import SamplingParams
from infer_server.gateway.errors import RefusedError
from infer_server.ipc import EngineReady
from infer_server.protocol import Generate

SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "logprobs",
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that the engine can take."""

    token_ids: bytes
    """little-endian int32"""
    num_prompt_tokens: int
    max_tokens: int
    params: dict[str, Any]
    """fields of SamplingParams for the engine; stop strings are not among them, the gateway finds those"""
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    """all that end the output, the model's own included; no text is made of them"""


def prepare(request: Generate, ready: EngineReady, served_model: str, tokenizer: Tokenizer) -> Prepared:
    """Raises RefusedError: unknown_model, invalid_request or prompt_too_long."""
    if request.model is not None and request.model != served_model:
        given = request.model if len(request.model) <= 80 else f"{request.model[:77]}..."
        raise RefusedError("unknown_model", f"model: got {given!r}; this endpoint serves {served_model!r}")
    fields = {name: getattr(request, name) for name in SAMPLING_FIELDS if getattr(request, name) is not None}
    try:
        params = SamplingParams(max_tokens=request.max_tokens, **fields)
    except InvalidRequestError as error:
        raise RefusedError("invalid_request", str(error)) from error
    token_ids = _prompt_tokens(request, ready, tokenizer)
    max_tokens = _output_limit(len(token_ids), request.max_tokens, ready)
    fields.pop("stop", None)
    return Prepared(
        token_ids=token_ids.tobytes(),
        num_prompt_tokens=len(token_ids),
        max_tokens=max_tokens,
        params={**fields, "max_tokens": max_tokens},
        stop=params.stop,
        stop_token_ids=frozenset(params.stop_token_ids)
        | (frozenset() if params.ignore_eos else tokenizer.eos_token_ids),
    )


def _prompt_tokens(request: Generate, ready: EngineReady, tokenizer: Tokenizer) -> np.ndarray[Any, np.dtype[np.int32]]:
    # Generate itself makes sure that exactly one of the three is given.
    field = next(name for name in ("prompt", "messages", "token_ids") if getattr(request, name) is not None)
    if not getattr(request, field):
        raise RefusedError("invalid_request", f"{field}: is empty; at least one token is needed")
    _require_room(request, ready, tokenizer)
    if request.token_ids is not None:
        ids = request.token_ids
        # In Python, not numpy: an id beyond 64 bits is one more wrong id, not an overflow.
        wrong = next((token_id for token_id in ids if not 0 <= token_id < ready.vocab_size), None)
        if wrong is not None:
            raise RefusedError(
                "invalid_request", f"token_ids: got {wrong}; each must be from 0 to {ready.vocab_size - 1}"
            )
    elif request.messages is not None:
        ids = _chat(request, tokenizer)
    else:
        ids = tokenizer.encode(request.prompt or "")
    if not len(ids):
        raise RefusedError("invalid_request", f"{field}: gives no token; at least one is needed")
    return np.asarray(ids, dtype="<i4")


def _require_room(request: Generate, ready: EngineReady, tokenizer: Tokenizer) -> None:
    """Refuse what can't fit before any work is spent on it: a text has at least a token for each `longest_token` characters."""
    limit = min(ready.max_model_len, ready.max_cache_tokens)
    if request.token_ids is not None:
        if len(request.token_ids) >= limit:
            raise _too_long(f"{len(request.token_ids)} tokens", limit)
        return
    num_characters = len(request.prompt or "") + sum(len(message.content) for message in request.messages or ())
    if num_characters >= limit * tokenizer.longest_token:
        raise _too_long(f"{num_characters} characters", limit)


def _too_long(size: str, limit: int) -> RefusedError:
    message = f"the prompt has {size}; prompt and output together have room for {limit} tokens"
    return RefusedError("prompt_too_long", message)


def _chat(request: Generate, tokenizer: Tokenizer) -> list[int]:
    messages = [{"role": message.role, "content": message.content} for message in request.messages or ()]
    try:
        return list(tokenizer.chat(messages))
    except InvalidRequestError as error:  # the template refuses a role or an order of turns, or there is none
        raise RefusedError("invalid_request", str(error)) from error


def _output_limit(num_prompt_tokens: int, max_tokens: int | None, ready: EngineReady) -> int:
    limit = min(ready.max_model_len, ready.max_cache_tokens)
    if num_prompt_tokens >= limit:
        raise _too_long(f"{num_prompt_tokens} tokens", limit)
    room = limit - num_prompt_tokens
    if max_tokens is None:
        return min(ready.default_max_tokens, room)
    if max_tokens > room:
        raise RefusedError(
            "invalid_request",
            f"max_tokens: got {max_tokens}; after a prompt of {num_prompt_tokens} tokens at most {room} fit into {limit}",
        )
    return max_tokens
