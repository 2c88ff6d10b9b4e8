"""What the supervisor tells a running front, one datagram each over the socketpair between them. Each is answered by `DONE`."""

from __future__ import annotations

import msgspec
from msgspec import Struct

DONE = b"done"
MAX_DATAGRAM = 1 << 20


class SetUsers(Struct, frozen=True, array_like=True, tag="users"):
    """The whole set of keys from now on; connections of a key that is not in it are dropped."""

    users: dict[str, str]
    """client's public key (Z85) -> User-Id"""


class LetNobodyIn(Struct, frozen=True, array_like=True, tag="stop"):
    """Serve the connections that are there. libzmq can't stop listening without ending them, so new ones are put off."""


Command = SetUsers | LetNobodyIn

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Command).decode
