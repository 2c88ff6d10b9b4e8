"""The clients of one front: who they are, what they have running, what waits to be sent to them.

In flow events of the ROUTER (a message came, a descriptor closed); out flows which connection is meant, and who is gone.

A connection is known from its first message on. Descriptors and routing ids are used again by later connections, so neither
names one for the gateway: a serial number does.
"""

from __future__ import annotations

import collections
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from infer_server.front import limits
from infer_server.protocol import Encoding


class Connection:
    """State of one client; written by the front's only thread."""

    __slots__ = ("backlog", "backlog_bytes", "fd", "id", "live", "progress", "public_key", "rate", "routing_id")

    def __init__(self, serial: int, routing_id: bytes, fd: int, public_key: str, now: float) -> None:
        self.id = serial.to_bytes(8, "big")
        self.routing_id = routing_id
        self.fd = fd
        """libzmq owns it: never close it"""
        self.public_key = public_key
        self.live: dict[bytes, tuple[Any, Encoding]] = {}
        """request id as bytes -> the id as it came, the encoding to answer in"""
        self.backlog: collections.deque[list[bytes]] = collections.deque()
        self.backlog_bytes = 0
        self.progress = now
        """when something was last sent, or when the backlog began"""
        self.rate = limits.TokenBucket(limits.MESSAGES_PER_SECOND, limits.MESSAGE_BURST, now)

    def shutdown(self) -> None:
        """Ends the TCP connection under libzmq, which then cleans up by itself. Neighbours notice nothing."""
        try:
            connection = socket.socket(fileno=self.fd)  # no duplicate: there may be no descriptor left for one
        except OSError:
            return  # it has ended by itself
        with contextlib.suppress(OSError):  # likewise
            connection.shutdown(socket.SHUT_RDWR)
        connection.detach()


class Connections:
    def __init__(self) -> None:
        self._by_fd: dict[int, Connection] = {}
        self._by_routing_id: dict[bytes, Connection] = {}
        self._by_id: dict[bytes, Connection] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._by_id.values()))

    def by_id(self, id: bytes) -> Connection | None:
        return self._by_id.get(id)

    def by_fd(self, fd: int) -> Connection | None:
        return self._by_fd.get(fd)

    def current(self, routing_id: bytes, fd: int) -> Connection | None:
        connection = self._by_fd.get(fd)
        return connection if connection is not None and connection.routing_id == routing_id else None

    def superseded(self, routing_id: bytes, fd: int) -> list[Connection]:
        """Those that must have ended, since a new one has their descriptor or their routing id."""
        old = {self._by_fd.get(fd), self._by_routing_id.get(routing_id)}
        return [connection for connection in old if connection is not None]

    def add(self, routing_id: bytes, fd: int, public_key: str, now: float) -> Connection:
        self._serial += 1
        connection = Connection(self._serial, routing_id, fd, public_key, now)
        self._by_fd[fd] = self._by_routing_id[routing_id] = self._by_id[connection.id] = connection
        return connection

    def remove(self, connection: Connection) -> None:
        del self._by_id[connection.id]
        del self._by_fd[connection.fd]
        del self._by_routing_id[connection.routing_id]
