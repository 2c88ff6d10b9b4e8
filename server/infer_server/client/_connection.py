"""The DEALER socket and what its monitor says: in flow and out flow frames, nothing is known here of requests.

libzmq connects again by itself after a lost connection, but never on a socket whose key was refused: that one must be
replaced.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import zmq

from infer_server import protocol
from infer_server.client._credentials import Credentials
from infer_server.protocol import Header

MONITOR_EVENT = struct.Struct("=hi")
EVENTS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_CONNECT_RETRIED
)


class RefusedError(Exception):
    """The server does not accept the client's key."""


class Connection:
    """`ready` is set by the owner on HELLO and cleared here when the connection ends."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], credentials: Credentials) -> None:
        self.ready = False
        self.trouble = "nothing answers there"
        """why there is no connection, as far as is known"""
        self.socket = context.socket(zmq.DEALER)
        for option, value in (
            (zmq.CURVE_SERVERKEY, credentials.server_public_key.encode()),
            (zmq.CURVE_PUBLICKEY, credentials.client_public_key.encode()),
            (zmq.CURVE_SECRETKEY, credentials.client_secret_key.encode()),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 1000),
            (zmq.CONNECT_TIMEOUT, 2000),  # what is not routed yet, such as a new Service, drops the first attempt
            (zmq.HANDSHAKE_IVL, 5000),
            (zmq.IMMEDIATE, 1),  # nothing is queued for a connection that does not exist
            (zmq.PROBE_ROUTER, 1),  # makes the server greet each new connection, also one that libzmq made by itself
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 30),
            (zmq.LINGER, 0),
        ):
            self.socket.setsockopt(option, value)
        self.monitor = self.socket.get_monitor_socket(EVENTS)
        self.socket.connect(credentials.endpoint)

    def read_monitor(self) -> bool:
        """Whether a connection has ended that was ready. Raises RefusedError."""
        ended = False
        while True:
            try:
                event, _ = self.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return ended
            match MONITOR_EVENT.unpack(event)[0]:
                case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    raise RefusedError
                case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                    self.trouble = "something answers there, but is stopping, or has another key than serverPublicKey"
                case zmq.EVENT_DISCONNECTED if self.ready:
                    self.ready, ended = False, True

    def send(self, header: Header, body: bytes) -> bool:
        """False: the connection takes no more at present."""
        try:
            self.socket.send_multipart([protocol.encode(header, "msgpack"), body], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive_all(self) -> Iterator[tuple[bytes, bytes]]:
        while True:
            try:
                header, body = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield header, body

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=0)
