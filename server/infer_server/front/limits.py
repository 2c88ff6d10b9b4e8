"""The numbers that bound what one client, and one front, may use.

Bytes and counts flow in, a yes or no flows out. A front serves one tenant, so a limit reached hurts that tenant alone.
"""

from __future__ import annotations

MAX_CONNECTIONS = 1024
"""Connections of one front; one more is closed."""

MAX_LIVE_REQUESTS = 256
"""Requests of one connection that have not ended; one more is refused with `too_many_requests`."""

MESSAGES_PER_SECOND = 2000.0
MESSAGE_BURST = 4000.0
"""Messages of one connection, of any kind; one more is refused with `rate_limited`."""

MAX_UNSENT_TO_GATEWAY = 1 << 20
"""Bytes. Above it the front stops reading its clients until the gateway has taken some."""

MAX_BACKLOG_BYTES = 8 << 20
MESSAGE_OVERHEAD = 256
"""Answers that wait in the front for one connection, beyond ZeroMQ's own queue: above it the connection is dropped. Each
counts as its length and the overhead, which is what the objects of a short message take."""

MAX_TOTAL_BACKLOG_BYTES = 32 << 20
"""The same, over all connections of one front: whoever passes it is dropped."""

BACKLOG_PATIENCE = 30.0
"""Seconds. A connection whose waiting answers make no progress for so long is dropped."""

LOG_LINES_PER_SECOND = 0.2
LOG_BURST = 20.0
"""Lines of one front about dropped connections, which clients can cause at will; the others are only counted."""

RETRY_MS = 250
"""What a refusal for a limit of this file tells the client to wait."""


class TokenBucket:
    """At most `rate` a second on average, `burst` at once. The clock's reading is passed in."""

    __slots__ = ("_burst", "_level", "_rate", "_then")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._then = burst, now

    def take(self, now: float) -> bool:
        self._level = min(self._burst, self._level + (now - self._then) * self._rate)
        self._then = now
        if self._level < 1:
            return False
        self._level -= 1
        return True
