"""One tenant's way into the gateway: how much of it may wait there, and how much of it is worked on at once.

In flow its new requests; out flow turns, or a refusal. Tokenising and the quota store are shared, so without this a tenant's
flood, though none of it is ever admitted, would keep both busy and have other tenants' requests time out.
"""

from __future__ import annotations

import asyncio
import sys
import time

from infer_server.gateway.errors import RefusedError, overloaded
from infer_server.protocol import Generate

MAX_REQUESTS = 1024
MAX_BYTES = 64 << 20
"""Requests of one tenant held at once, running or waiting; more are refused. Bytes as `footprint` counts them."""

TURNS = 2
"""Requests of one tenant that are tokenised or reserved at once. A turn takes about a millisecond."""

MAX_SHUT_SECONDS = 1.0
"""How long a refusal by the store may be repeated without asking again: so soon is a higher limit noticed."""


def footprint(request: Generate) -> int:
    """About how many bytes of memory a request takes."""
    texts = [request.prompt or "", *(request.stop or ())]
    for message in request.messages or ():
        texts += (message.role, message.content)
    num_ids = len(request.token_ids or ()) + len(request.stop_token_ids or ())
    return 4096 + sum(map(sys.getsizeof, texts)) + 40 * num_ids


class Lane:
    """`enter` and `leave` come in pairs. Used from one event loop."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(TURNS)
        self._num_requests = 0
        self._num_bytes = 0
        self._shut_until = 0.0
        self._shut_with: RefusedError | None = None

    def enter(self, num_bytes: int) -> None:
        """Raises RefusedError."""
        now = time.monotonic()
        if self._shut_with is not None and now < self._shut_until:
            raise self._shut_with
        if self._num_requests >= MAX_REQUESTS or self._num_bytes + num_bytes > MAX_BYTES:
            raise overloaded(f"{MAX_REQUESTS} requests or {MAX_BYTES >> 20} MiB of one tenant")
        self._num_requests += 1
        self._num_bytes += num_bytes

    def leave(self, num_bytes: int) -> None:
        self._num_requests -= 1
        self._num_bytes -= num_bytes

    def shut(self, refusal: RefusedError) -> None:
        """The store has refused for a reason that no other request of this tenant can escape before `retry_ms`."""
        seconds = min((refusal.retry_ms or 0) / 1000, MAX_SHUT_SECONDS)
        self._shut_until, self._shut_with = time.monotonic() + seconds, refusal
