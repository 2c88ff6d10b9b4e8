"""The gateway's ends of its sockets: streams to fronts and engine, and the control socket to the supervisor.

In flow bytes and descriptors; out flow typed messages, by callback in the event loop. No policy lives here.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec
from msgspec import Struct

from infer_server import ipc

log = logging.getLogger(__name__)

MAX_DATAGRAM = 1 << 20
HIGH_WATER = 1 << 20
"""Bytes waiting in one stream before its writers hold back."""


MESSAGE_COST = 4096
"""Bytes that a message counts for in a pace beyond its length: what its handling takes."""


class Pace:
    """At most `rate` bytes a second on average, `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._then = burst, time.monotonic()

    def take(self, num_bytes: int) -> float:
        """How many seconds to wait before the next."""
        now = time.monotonic()
        self._level = min(self._burst, self._level + (now - self._then) * self._rate) - num_bytes
        self._then = now
        return max(0.0, -self._level / self._rate)


class Stream(asyncio.Protocol):
    """One length-prefixed stream. `on_message` gets each decoded message, `on_lost` is called once at the end.

    With a `pace` the peer is not trusted: no more is read than the pace allows, and nothing while it does not read itself.
    """

    def __init__(
        self,
        kind: Any,
        on_message: Callable[[Any], None],
        on_lost: Callable[[], None],
        *,
        max_message: int = ipc.MAX_MESSAGE,
        pace: Pace | None = None,
    ) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._deframer = ipc.Deframer(max_message)
        self._pace = pace
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._resting: asyncio.TimerHandle | None = None
        self.is_behind = False
        """The peer has more than HIGH_WATER bytes to read; set by the transport."""

    async def connect(self, sock: socket.socket) -> None:
        """Takes `sock` over. Callbacks may come before this returns."""
        sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        cost = len(data)
        try:
            for body in self._deframer.feed(data):
                cost += MESSAGE_COST
                self._on_message(self._decoder.decode(body))
        except (ipc.FramingError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.error("a peer process sent what this gateway can't read, its stream is closed: %.200r", str(error))
            self.close()
            return
        if self._pace is not None and (seconds := self._pace.take(cost)) and self._resting is None:
            self._resting = asyncio.get_running_loop().call_later(seconds, self._rested)
            self._read_or_not()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.is_behind = False
        if self._resting is not None:
            self._resting.cancel()
        self._on_lost()

    def pause_writing(self) -> None:
        self.is_behind = True
        self._read_or_not()

    def resume_writing(self) -> None:
        self.is_behind = False
        self._read_or_not()

    def _rested(self) -> None:
        self._resting = None
        self._read_or_not()

    def _read_or_not(self) -> None:
        if self._transport is None or self._pace is None or self._transport.is_closing():
            return
        if self.is_behind or self._resting is not None:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def send(self, message: Struct) -> None:
        """Never blocks; what is sent after the peer is gone is dropped, since `on_lost` tells its senders."""
        if self._transport is not None:
            self._transport.write(ipc.frame(message))

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
