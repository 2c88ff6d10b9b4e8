"""One tenant's endpoint as the supervisor sees it: a listening socket, and a front process that is forked again when it dies.

In flow keys and the deployment's key file; out flow a process id and the gateway's end of the front's stream.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

from infer_server.front import control, limits
from infer_server.front.backoff import Backoff
from infer_server.front.process import fork, harden
from infer_server.front.router import Front

FRONT_DATA_LIMIT = 192 << 20
FRONT_MAX_FDS = limits.MAX_CONNECTIONS + 128
SOCKET_BUFFER = 64 << 10
"""bytes; with a ready-made socket libzmq sets none, and accepted connections inherit these"""
KEYS_DEADLINE = 1.0
"""seconds; a front that has not taken new keys by then is stuck, and a fresh one has them"""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket for libzmq. Raises OSError; its text says what was wrong with which address."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        listener.bind((host, port))
        listener.listen(128)
        listener.setblocking(False)  # libzmq's thread accepts, and must never block in it
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from error
    return listener


class Endpoint:
    """Written by the supervisor's only thread. `due` is when the next attempt to listen or to fork may be made."""

    def __init__(self, tenant: str, port: int, users: dict[str, str]) -> None:
        self.tenant, self.port, self.users = tenant, port, users
        self.pid: int | None = None
        self.due = 0.0
        self.backoff = Backoff(first=0.02, most=10.0, healthy=10.0)
        self.listen_backoff = Backoff(first=0.25, most=10.0, healthy=10.0)
        self.listener: socket.socket | None = None
        self.control: socket.socket | None = None
        self.keys_deadline: float | None = None
        """set while the front has been sent something and has not answered"""
        self._started = 0.0

    def start(self, key_file: str) -> socket.socket:
        """Fork the front; returns the gateway's end of its stream. `listener` must be there."""
        assert self.listener is not None
        assert self.pid is None
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gateway_end, front_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        listener, tenant, users = self.listener, self.tenant, dict(self.users)

        def front() -> None:
            harden({listener.fileno(), theirs.fileno(), front_end.fileno()}, FRONT_DATA_LIMIT, FRONT_MAX_FDS)
            Front(
                tenant=tenant,
                users=users,
                secret_key=Path(key_file).read_bytes().strip(),  # the supervisor itself never holds it
                listener=listener,
                gateway=front_end,
                supervisor=theirs,
            ).run()

        self.pid = fork(front)
        theirs.close()
        front_end.close()
        mine.setblocking(False)
        self.control, self.keys_deadline, self._started = mine, None, time.monotonic()
        return gateway_end

    def ended(self, now: float) -> None:
        """Its front has been reaped."""
        self.due = now + self.backoff.after(now - self._started)
        self.pid, self.keys_deadline = None, None
        if self.control is not None:
            self.control.close()
            self.control = None

    def tell(self, command: control.Command, now: float) -> None:
        if self.control is None:
            return  # the next front starts with what is known now
        try:
            self.control.send(control.encode(command))
            self.keys_deadline = self.keys_deadline or now + KEYS_DEADLINE
        except OSError:  # stuck or dying
            self.keys_deadline = now

    def read_answer(self) -> None:
        if self.control is None:
            return
        try:
            answer = self.control.recv(64)
        except OSError:
            return
        if answer == control.DONE:
            self.keys_deadline = None
        else:  # it ends, or says what no front says: nobody could revoke a key in it any more
            self.control.close()
            self.control = None
            self.keys_deadline = time.monotonic() + KEYS_DEADLINE

    def close(self) -> None:
        """Let go of the sockets; the front, if there is one, notices the end of its streams."""
        for sock in (self.listener, self.control):
            if sock is not None:
                sock.close()
        self.listener = self.control = None
