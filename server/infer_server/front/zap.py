"""Who may connect: the ZAP handler (ZeroMQ RFC 27) of one front.

In flow libzmq's questions, one per CURVE handshake; out flows 200 and the client's identity, or 400. The identity is the
client's public key itself, so that revoking a key finds exactly the connections of that key, whatever User-Ids share it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import zmq
from zmq.utils import z85

ADDRESS = "inproc://zeromq.zap.01"


def key_error(public_key: str) -> str | None:
    """What is wrong with a client's public key, or None."""
    try:
        size = len(z85.decode(public_key))
    except (ValueError, KeyError, struct.error):  # the last for five characters that say more than four bytes
        return f"public key {public_key!r}: not Z85"
    return None if size == 32 else f"public key {public_key!r}: {len(public_key)} characters; must be 40"


class Authenticator:
    """Answers for one domain, a tenant. Must be bound before the sockets that it guards."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], domain: str, users: Mapping[str, str]) -> None:
        self._domain = domain.encode()
        self._users = dict(users)
        self.closed = False
        """Once set nobody is let in, but told to try again later (300); libzmq's clients do so by themselves."""
        self.socket = context.socket(zmq.REP)
        self.socket.bind(ADDRESS)

    def user(self, public_key: str) -> str | None:
        """The User-Id behind an identity; None once the key is revoked."""
        return self._users.get(public_key)

    def replace(self, users: Mapping[str, str]) -> set[str]:
        """From now on these keys. Returns those that are gone, whose connections are to be dropped."""
        revoked = self._users.keys() - users.keys()
        self._users = dict(users)
        return set(revoked)

    def answer_all(self) -> None:
        """Answers what waits; can't raise, since a question without an answer would block the endpoint's handshakes."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart(self._answer(frames))

    def _answer(self, frames: list[bytes]) -> list[bytes]:
        request_id = frames[1] if len(frames) > 1 else b""
        if self.closed:
            return [b"1.0", request_id, b"300", b"this server is stopping", b"", b""]
        identity = b""
        # version, request id, domain, address, routing id, mechanism, the client's key as 32 raw bytes
        if len(frames) == 7 and frames[2] == self._domain and frames[5] == b"CURVE" and len(frames[6]) == 32:
            public_key = z85.encode(frames[6]).decode("ascii")
            if public_key in self._users:
                identity = public_key.encode("ascii")
        if identity:
            return [b"1.0", request_id, b"200", b"OK", identity, b""]
        return [b"1.0", request_id, b"400", b"this key has no access here", b"", b""]
