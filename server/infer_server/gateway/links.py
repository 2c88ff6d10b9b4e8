"""The gateway's ends of its sockets: streams to fronts and engine, and the control socket to the supervisor.

In flow bytes and descriptors; out flow typed messages, by callback in the event loop. No policy lives here.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

import msgspec
from msgspec import Struct

from infer_server import ipc

log = logging.getLogger(__name__)

MAX_DATAGRAM = 1 << 20
HIGH_WATER = 1 << 20
"""Bytes waiting in one stream before its writers pause."""


class Stream(asyncio.Protocol):
    """One length-prefixed stream. `on_message` gets each decoded message, `on_lost` is called once at the end."""

    def __init__(self, kind: Any, on_message: Callable[[Any], None], on_lost: Callable[[], None]) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._deframer = ipc.Deframer()
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    async def connect(self, sock: socket.socket) -> None:
        """Takes `sock` over. Callbacks may come before this returns."""
        sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._deframer.feed(data):
                self._on_message(self._decoder.decode(body))
        except (ipc.FramingError, msgspec.DecodeError) as error:
            log.error("a peer process sent what this gateway can't read, its stream is closed: %s", error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        self._on_lost()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def send(self, message: Struct) -> None:
        """Never blocks; what is sent after the peer is gone is dropped, since `on_lost` tells its senders."""
        if self._transport is not None:
            self._transport.write(ipc.frame(message))

    async def drain(self) -> None:
        """Wait while the peer is behind by more than HIGH_WATER bytes."""
        await self._writable.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Control:
    """The SOCK_SEQPACKET to the supervisor. Each Link comes with the descriptor of its stream."""

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[ipc.Link | ipc.EndpointFailed, socket.socket | None], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._on_message = on_message
        self._on_lost = on_lost
        self._decoder = msgspec.msgpack.Decoder(ipc.SupervisorToGateway)
        self._unsent: collections.deque[bytes] = collections.deque()
        self._loop = asyncio.get_running_loop()
        self._open = True
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    def send(self, message: ipc.OpenEndpoint | ipc.CloseEndpoint) -> None:
        self._unsent.append(msgspec.msgpack.encode(message))
        self._flush()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def _flush(self) -> None:
        while self._open and self._unsent:
            try:
                self._sock.send(self._unsent[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError as error:
                self._lose(error)
                return
            self._unsent.popleft()
        if self._open:
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, MAX_DATAGRAM, 1)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        if not data:
            self._lose(None)
            return
        peer = socket.socket(fileno=descriptors[0]) if descriptors else None
        self._on_message(self._decoder.decode(data), peer)

    def _lose(self, error: OSError | None) -> None:
        log.error("the supervisor is gone (%s)", error or "end of file")
        self.close()
        self._on_lost()
