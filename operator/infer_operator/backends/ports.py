"""Ports of this machine, held from the moment they are given out, long before a pod with a model to load listens on them.

A port is held by a socket that is bound and never listens. Linux lets another socket with SO_REUSEADDR listen beside it, so
the pod can, while whoever asks for the port to be theirs alone, `claim` of another `up` above all, is refused.
"""

from __future__ import annotations

import socket


class Ports:
    """Those held by this process; they are free again when it ends, however."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._held: dict[int, socket.socket] = {}

    def claim(self, port: int) -> bool:
        """Hold a port that nobody uses or holds. Connections that have just ended count as use, for a minute."""
        return self._bind(port, shared=False)

    def reclaim(self, port: int) -> bool:
        """Hold a port that was ours before: only a listener is in the way."""
        return port in self._held or self._bind(port, shared=True)

    def release(self, port: int) -> None:
        if (holder := self._held.pop(port, None)) is not None:
            holder.close()

    def close(self) -> None:
        for port in list(self._held):
            self.release(port)

    def _bind(self, port: int, *, shared: bool) -> bool:
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(shared))
            holder.bind((self._host, port))
            # Only now: set before, it would let two claims of one port succeed.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            holder.close()
            return False
        self._held[port] = holder
        return True
