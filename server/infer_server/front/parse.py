"""A client's frames become what it asks for, or a refusal that says what is wrong with them. Pure: bytes in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from infer_server import protocol
from infer_server.protocol import Encoding, Generate, Header, Hello

NO_HEADER = Header(op="")


@dataclass(frozen=True, slots=True)
class Request:
    """One message in order. `body` is set for REQ alone; `header.op` is REQ, CANCEL, HELLO or PING."""

    header: Header
    encoding: Encoding
    body: Generate | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The message is answered with ERR; where its header could be read, `header.rid` says whose."""

    header: Header
    encoding: Encoding
    code: str
    message: str


def parse(frames: Sequence[bytes]) -> Request | Refusal:
    """`frames` without the routing id; more than two are refused, so the caller need not pass on more than three."""
    encoding = protocol.encoding_of(frames[0]) if frames else "json"
    if not frames or len(frames) > 2:
        number = "more than 2" if frames else "no"
        return Refusal(NO_HEADER, encoding, "bad_frame", f"got {number} frames; a message is two: header, body")
    try:
        header = protocol.decode(frames[0], Header)
    except msgspec.DecodeError as error:
        return Refusal(NO_HEADER, encoding, "bad_frame", f"header: {error}")
    if header.v != protocol.VERSION:
        return _unsupported(header, encoding, f"header: `$.v`: got {header.v}")
    match header.op:
        case "REQ":
            return _generate(header, encoding, frames)
        case "CANCEL" if header.rid is None:
            return Refusal(header, encoding, "bad_request", "header: `$.rid`: CANCEL needs the id of a request")
        case "HELLO" if len(frames) == 2 and len(frames[1]):
            return _hello(header, encoding, frames[1])
        case "CANCEL" | "HELLO" | "PING":
            return Request(header, encoding)
    known = "REQ, CANCEL, HELLO, PING"
    return Refusal(header, encoding, "bad_frame", f"header: `$.op`: got {header.op[:32]!r}; must be one of {known}")


def _generate(header: Header, encoding: Encoding, frames: Sequence[bytes]) -> Request | Refusal:
    if header.rid is None:
        return Refusal(header, encoding, "bad_request", "header: `$.rid`: REQ needs an id, a string or bytes")
    if len(frames) < 2:
        return Refusal(header, encoding, "bad_frame", "got 1 frame; REQ is two: header, body")
    try:
        return Request(header, encoding, protocol.decode(frames[1], Generate))
    except msgspec.DecodeError as error:
        return Refusal(header, encoding, "bad_request", f"body: {error}")


def _hello(header: Header, encoding: Encoding, body: bytes) -> Request | Refusal:
    try:
        hello = protocol.decode(body, Hello)
    except msgspec.DecodeError as error:
        return Refusal(header, encoding, "bad_request", f"body: {error}")
    if protocol.VERSION not in hello.versions:
        return _unsupported(header, encoding, f"body: `$.versions`: got {list(hello.versions)[:8]}")
    return Request(header, encoding)


def _unsupported(header: Header, encoding: Encoding, given: str) -> Refusal:
    return Refusal(header, encoding, "unsupported_version", f"{given}; this server speaks version {protocol.VERSION}")
