"""Messages between our own processes: supervisor, front, gateway, engine. Length-prefixed MessagePack on socketpairs.

Who may talk to whom is settled by who holds a descriptor: the supervisor makes every socketpair and hands the gateway its
end together with the name of the peer (`Link`). So the tenant of a front is a fact, not a claim.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from infer_server.protocol import Generate

LENGTH = struct.Struct(">I")
MAX_MESSAGE = 16 << 20


# --- front -> gateway -----------------------------------------------------------------------------------------------
class Submit(Struct, frozen=True, array_like=True, tag="submit"):
    conn: bytes
    """the client's connection, meaningful to that front only; never used again for a later one"""
    rid: bytes
    """request id, opaque to the gateway"""
    user: str
    """the ZAP User-Id: which of the tenant's keys"""
    request: Generate


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    conn: bytes
    rid: bytes


class Gone(Struct, frozen=True, array_like=True, tag="gone"):
    """The client's connection is lost, or it does not read: its requests are to be cancelled."""

    conn: bytes
    reason: str


FrontToGateway = Submit | Cancel | Gone


# --- gateway -> front -----------------------------------------------------------------------------------------------
class Reply(Struct, frozen=True, array_like=True, tag="reply"):
    """One message to a client. `op` is ACK, TOK, END or ERR; `body` is that op's body as plain data."""

    conn: bytes
    rid: bytes
    op: str
    body: dict[str, Any]


GatewayToFront = Reply


# --- gateway -> engine ----------------------------------------------------------------------------------------------
class AddRequest(Struct, frozen=True, array_like=True, tag="add"):
    id: int
    tenant: str
    namespace: str
    token_ids: bytes
    """little-endian int32"""
    params: dict[str, Any]
    """fields of infer_engine SamplingParams"""
    deadline_ms: int | None = None
    """from now on"""


class CancelRequest(Struct, frozen=True, array_like=True, tag="cancel"):
    id: int


class SetShares(Struct, frozen=True, array_like=True, tag="shares"):
    """Those that changed."""

    shares: dict[str, dict[str, Any]]
    """tenant -> fields of infer_engine Share"""


class DropTenant(Struct, frozen=True, array_like=True, tag="drop"):
    """Forget its share and overwrite what it has cached."""

    tenant: str


GatewayToEngine = AddRequest | CancelRequest | SetShares | DropTenant


# --- engine -> gateway ----------------------------------------------------------------------------------------------
class EngineReady(Struct, frozen=True, array_like=True, tag="ready"):
    model_name: str
    model_dir: str
    """where the gateway finds the tokenizer"""
    revision: str
    """digest of the weights and configuration: part of each cache namespace"""
    kv_layout: str
    """dtype and layout of the KV pool: part of each cache namespace"""
    max_model_len: int
    default_max_tokens: int
    max_cache_tokens: int
    vocab_size: int


class ModelRefused(Struct, frozen=True, array_like=True, tag="refused"):
    """Instead of EngineReady, and the process ends."""

    message: str
    """what is wrong with the model or the engine's configuration, and what to do"""


class Tokens(Struct, frozen=True, array_like=True, tag="tokens"):
    id: int
    token_ids: list[int]
    logprobs: list[tuple[int, float, list[tuple[int, float]]]] | None = None


class Finished(Struct, frozen=True, array_like=True, tag="finished"):
    id: int
    finish_reason: str
    prompt_tokens: int
    """computed or cached; fewer than were given where the request ended early"""
    cached_tokens: int
    output_tokens: int
    queue_ms: float
    error_code: str | None = None
    error_message: str | None = None
    retry_ms: int | None = None


class TenantCache(Struct, frozen=True, array_like=True):
    """Cumulative since the engine started, but for kv_tokens, which is now."""

    tenant: str
    lookup_tokens: int
    hit_tokens: int
    kv_tokens: int
    evicted_tokens: dict[str, int]
    """by cause: infer_engine's EvictionCause"""
    cross_evicted_tokens: int
    """taken by others from what it is guaranteed"""


class Snapshot(Struct, frozen=True, array_like=True, tag="snapshot"):
    """Sent every second: the engine's counters (fields of EngineStats) and each tenant's part of the cache."""

    stats: dict[str, float]
    tenants: list[TenantCache]


EngineToGateway = EngineReady | ModelRefused | Tokens | Finished | Snapshot


# --- supervisor <-> gateway: one SOCK_SEQPACKET datagram each, unprefixed ---------------------------------------------
class OpenEndpoint(Struct, frozen=True, array_like=True, tag="open"):
    """gateway -> supervisor: serve this tenant here, with these keys. Also used to change the keys of an open one."""

    tenant: str
    port: int
    users: dict[str, str]
    """client's public key (Z85) -> User-Id"""


class CloseEndpoint(Struct, frozen=True, array_like=True, tag="close"):
    tenant: str


class Link(Struct, frozen=True, array_like=True, tag="link"):
    """supervisor -> gateway, with one descriptor: the stream to a peer that has just been started."""

    kind: str
    """"front" or "engine"."""
    tenant: str = ""


class EndpointFailed(Struct, frozen=True, array_like=True, tag="failed"):
    """supervisor -> gateway: the endpoint could not be opened (port in use, say)."""

    tenant: str
    message: str


GatewayToSupervisor = OpenEndpoint | CloseEndpoint
SupervisorToGateway = Link | EndpointFailed


def frame(message: Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


class FramingError(Exception):
    """The peer announces a message larger than is allowed: the stream can't be trusted any more, close it."""


class Deframer:
    """Cuts a byte stream into the bodies of its messages; keeps what is incomplete for the next call.

    A long message that comes byte by byte is copied once, not with each byte.
    """

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._max_message = max_message
        self._rest = bytearray()
        self._wanted = 0
        """how many bytes `_rest` must have before there is anything to do"""

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Exhaust the iterator before the next call. Raises FramingError."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest.clear()
        view, start = memoryview(data), 0
        self._wanted = LENGTH.size
        while len(view) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(view, start)
            if length > self._max_message:
                raise FramingError(
                    f"a message of {length} bytes was announced; at most {self._max_message} are allowed"
                )
            end = start + LENGTH.size + length
            if end > len(view):
                self._wanted = LENGTH.size + length
                break
            yield bytes(view[start + LENGTH.size : end])
            start = end
        self._rest += view[start:]
