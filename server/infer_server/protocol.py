"""Wire protocol v1 between a tenant's client and its front: two ZeroMQ frames, `[header][body]`.

Each frame is MessagePack, or JSON when its first byte is `{`. The front answers a connection in the encoding of its latest
message. A request id (`rid`) is scoped to its connection.

    client -> server   HELLO    optional: versions the client speaks
                       REQ      body: Generate
                       CANCEL   ends the request; END with finish_reason "cancelled" follows
                       PING
    server -> client   HELLO    version, limits, boot id; also greets a PROBE_ROUTER connection
                       ACK      the request was admitted
                       TOK      seq (from 0), text, token_ids, logprobs
                       END      finish_reason, usage
                       ERR      code, message, retry_ms: the request is over (or never began)
                       PONG
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

VERSION = 1
MAX_FRAME = 1 << 20
MAX_RID = 64

Rid = Annotated[str, Meta(min_length=1, max_length=MAX_RID)] | Annotated[bytes, Meta(min_length=1, max_length=MAX_RID)]


class Header(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    op: str
    rid: Rid | None = None
    v: int = VERSION


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str


class Generate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of REQ. Exactly one of prompt, messages and token_ids; the rest as in infer_engine's SamplingParams."""

    prompt: str | None = None
    messages: list[Message] | None = None
    token_ids: list[int] | None = None
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    logprobs: int | None = None
    deadline_ms: Annotated[int, Meta(ge=1)] | None = None
    cache_salt: Annotated[str, Meta(max_length=128)] | None = None
    """Requests share cached prefixes only with requests of the same salt."""


class Hello(Struct, frozen=True, omit_defaults=True):
    versions: tuple[int, ...] = (VERSION,)


class ServerHello(Struct, frozen=True, kw_only=True):
    version: int
    boot: str
    limits: dict[str, int]


class Tok(Struct, frozen=True, kw_only=True, omit_defaults=True):
    seq: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[str, Any]] | None = None


class Usage(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class End(Struct, frozen=True, kw_only=True):
    finish_reason: str
    usage: Usage


class Err(Struct, frozen=True, kw_only=True, omit_defaults=True):
    code: str
    message: str
    retry_ms: int | None = None


def decode(frame: bytes | memoryview, type: type[Any]) -> Any:
    """Raises msgspec.ValidationError or msgspec.DecodeError; the message names the path of what is wrong."""
    if bytes(frame[:1]) == b"{":
        return msgspec.json.decode(frame, type=type)
    return msgspec.msgpack.decode(frame, type=type)
