"""Wire protocol v1 between a tenant's client and its front: two ZeroMQ frames, `[header][body]`.

Each frame is MessagePack, or JSON when its first byte is `{`. An answer comes in the encoding of the header that it
answers. A request id (`rid`) is scoped to its connection, is 1 to 64 bytes, and comes back as it was given, string or bytes;
a string and its UTF-8 bytes are the same id.

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

The exact rules are in docs/protocol.md.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

VERSION = 1
MAX_FRAME = 1 << 20
MAX_RID = 64
MAX_MESSAGES = 4096
MAX_STOP_TOKEN_IDS = 1024

Encoding = Literal["json", "msgpack"]


class Header(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`rid` is a string or bytes; msgspec has no such union, so it is checked here."""

    op: str
    rid: Any = None
    v: int = VERSION

    def __post_init__(self) -> None:
        if self.rid is None:
            return
        if not isinstance(self.rid, (str, bytes)):
            raise ValueError(f"`$.rid`: must be a string or bytes, got {type(self.rid).__name__}")
        if not 1 <= len(self.key) <= MAX_RID:
            raise ValueError(f"`$.rid`: must be 1 to {MAX_RID} bytes long, got {len(self.key)}")

    @property
    def key(self) -> bytes:
        """The request id as bytes, whatever kind it came in; empty where there is none."""
        return self.rid.encode() if isinstance(self.rid, str) else self.rid or b""


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str


class Generate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of REQ. Exactly one of prompt, messages and token_ids; the rest as in infer_engine's SamplingParams."""

    prompt: str | None = None
    messages: Annotated[list[Message], Meta(max_length=MAX_MESSAGES)] | None = None
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
    stop_token_ids: Annotated[list[int], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    logprobs: int | None = None
    deadline_ms: Annotated[int, Meta(ge=1)] | None = None
    cache_salt: Annotated[str, Meta(max_length=128)] | None = None
    """Requests share cached prefixes only with requests of the same salt."""

    def __post_init__(self) -> None:
        given = [name for name in ("prompt", "messages", "token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of prompt, messages, token_ids; got {', '.join(given) or 'none'}")


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


def encoding_of(frame: bytes | memoryview) -> Encoding:
    return "json" if bytes(frame[:1]) == b"{" else "msgpack"


def decode(frame: bytes | memoryview, type: type[Any]) -> Any:
    """Raises msgspec.ValidationError or msgspec.DecodeError; the message names the path of what is wrong."""
    try:
        return _decoder(type, encoding_of(frame)).decode(frame)  # type: ignore[arg-type]
    except UnicodeDecodeError as error:  # msgspec passes these two on as they are
        raise msgspec.DecodeError(f"a string is not UTF-8: {error.reason}") from error
    except RecursionError as error:
        raise msgspec.DecodeError("nested too deeply") from error


def encode(message: Any, encoding: Encoding) -> bytes:
    return _ENCODERS[encoding].encode(message)


_ENCODERS: dict[Encoding, msgspec.json.Encoder | msgspec.msgpack.Encoder] = {
    "json": msgspec.json.Encoder(),
    "msgpack": msgspec.msgpack.Encoder(),
}


@functools.cache
def _decoder(type: type[Any], encoding: Encoding) -> Any:
    return msgspec.json.Decoder(type) if encoding == "json" else msgspec.msgpack.Decoder(type)
