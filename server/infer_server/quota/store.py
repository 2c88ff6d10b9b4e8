"""Requests of tenants in, admissions and charges out. The decisions are made in the store (scripts/quota.lua), one call each;
this side names the keys, bounds the wait, and turns replies into values and errors. It keeps no quota state of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from infer_engine.errors import InvalidRequestError
from infer_server.contract.document import QuotaLimits
from infer_server.contract.keys import tenant_key
from infer_server.contract.limits import decode_limits, encode_limits
from infer_server.quota import library
from infer_server.quota.connection import Connection, connect, is_missing_function
from infer_server.quota.embedded import EmbeddedStore, default_directory
from infer_server.quota.errors import DuplicateRequest, QuotaUnavailable, denial
from infer_server.quota.reservation import Bucket, Renewal, Reservation, Settlement, Usage, Use, Window

KEY_PARTS = ("limits", "state", "leases", "requests", "settled", "audit")
RENEW_BATCH = 500
MAX_TOKENS = 2**53


class QuotaStore:
    """All methods may raise QuotaUnavailable, within a small multiple of the time-out; then nothing was admitted, and the
    same call may be made again. Tasks of one event loop may share a store. After a restart of the store it works again by
    itself."""

    def __init__(
        self,
        connection: Connection,
        *,
        lease_seconds: float = 60.0,
        hold_seconds: float = 60.0,
        library_code: str | None = None,
    ) -> None:
        self._connection = connection
        self._lease_ms = _milliseconds("lease_seconds", lease_seconds)
        self._hold_ms = _milliseconds("hold_seconds", hold_seconds)
        self._library_code = library_code or library.text()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str | None = None,
        *,
        directory: str | Path | None = None,
        timeout_seconds: float = 0.25,
        lease_seconds: float = 60.0,
        hold_seconds: float = 60.0,
    ) -> AsyncIterator[QuotaStore]:
        """url: redis://, rediss:// or unix://; None starts an embedded store in `directory` (by default under XDG_STATE_HOME)
        and stops it on leaving. lease_seconds: how long an admitted request counts without a renewal. hold_seconds: how
        long after that its reservation waits for a settle before the sweep closes it."""
        async with AsyncExitStack() as stack:
            if url is None:
                embedded = EmbeddedStore(Path(directory) if directory is not None else default_directory())
                embedded.start()  # here and not in a worker thread: the child lives as long as the thread that started it
                stack.push_async_callback(asyncio.to_thread, embedded.stop)
                await asyncio.to_thread(embedded.wait_until_ready)
                url = embedded.url
            connection = connect(url, timeout_seconds=timeout_seconds)
            stack.push_async_callback(connection.client.aclose)
            store = cls(connection, lease_seconds=lease_seconds, hold_seconds=hold_seconds)
            await store.load_library()
            yield store

    async def load_library(self) -> None:
        async with self._connection.guarded():
            await library.ensure_loaded(self._connection.client, self._library_code)

    async def set_limits(self, tenant: str, limits: QuotaLimits) -> None:
        """Replaces the tenant's limits, for all pods at once. In a deployment the document's writer does this instead."""
        fields = [text for pair in encode_limits(limits).items() for text in pair]
        async with self._connection.guarded():
            await self._connection.client.hset(_keys(tenant)[0], items=fields)

    async def reserve(self, tenant: str, request_id: str, *, prompt_tokens: int, max_tokens: int) -> Reservation:
        """Sets aside prompt_tokens + max_tokens, or raises QuotaDenied and sets aside nothing.

        request_id is unique among the tenant's requests over all pods (a UUID). The same call again returns the same
        reservation; the id of a request that ended raises DuplicateRequest."""
        estimate = _estimate(request_id, prompt_tokens, max_tokens)
        before = time.monotonic()
        reply = await self._call("reserve", tenant, request_id, prompt_tokens, estimate, self._lease_ms, self._hold_ms)
        match reply:
            case ["ok", left_ms]:
                return Reservation(self, tenant, request_id, estimate, before + left_ms / 1000)
            case ["denied", reason, limit_name, limit, retry_ms]:
                raise denial(tenant, reason, limit_name, limit, retry_ms if retry_ms >= 0 else None, estimate)
            case ["duplicate"]:
                raise DuplicateRequest(
                    f"request id {request_id!r} of tenant {tenant} was reserved before: give each request an id of its own"
                )
        raise QuotaUnavailable(f"the quota store's reply to reserve is not understood: {reply!r}")

    async def settle(self, tenant: str, request_id: str, use: Use) -> Settlement:
        """As Reservation.settle, for a caller that kept only the ids. An unknown id charges nothing."""
        used = (use.computed_tokens, use.cached_tokens, use.output_tokens)
        charged, uncharged = await self._call("settle", tenant, request_id, *used)
        return Settlement(charged, uncharged)

    async def renew(self, tenant: str, uses: Mapping[str, Use]) -> Renewal:
        """Prolongs the leases of a tenant's running requests, and notes what each used so far: the sweep charges that, should
        no settle come."""
        before = time.monotonic()
        lost: set[str] = set()
        items = iter(uses.items())
        while batch := list(islice(items, RENEW_BATCH)):
            arguments: list[str | int] = []
            for request_id, use in batch:
                arguments += (request_id, use.computed_tokens, use.cached_tokens, use.output_tokens)
            lost.update(await self._call("renew", tenant, self._lease_ms, *arguments))
        return Renewal(before + self._lease_ms / 1000, frozenset(lost))

    async def sweep(self, tenant: str, *, most: int = 100) -> int:
        """Closes reservations whose holder is gone, at most so many; returns how many. reserve does a little of it too, so
        this matters for tenants that have gone quiet."""
        return int(await self._call("sweep", tenant, self._hold_ms, most))

    async def usage(self, tenant: str) -> Usage:
        """Raises QuotaDenied(unknown_tenant) for a tenant without limits."""
        raw_limits, live, held, levels, day, month = await self._call("usage", tenant)
        if not raw_limits:
            raise denial(tenant, "unknown_tenant", "", 0, None, 0)
        limits = decode_limits(dict(zip(raw_limits[::2], raw_limits[1::2], strict=True)))
        return Usage(
            limits=limits,
            live=live,
            held=held,
            requests=_bucket(levels[0], limits.requests_per_minute, limits.requests_burst),
            tokens=_bucket(levels[1], limits.tokens_per_minute, limits.tokens_burst),
            day=_window(day, limits.tokens_per_day),
            month=_window(month, limits.tokens_per_month),
        )

    async def _call(self, function: str, tenant: str, *arguments: str | int) -> Any:
        keys = _keys(tenant)
        client = self._connection.client
        name = f"{library.NAME}_{function}"
        async with self._connection.guarded():
            try:
                return await client.fcall(name, len(keys), *keys, *arguments)
            except ResponseError as error:
                if not is_missing_function(error):
                    raise
            # The store was emptied or replaced: give it the functions again. Limits are the document writer's to restore;
            # until then every request is denied.
            await library.ensure_loaded(client, self._library_code)
            return await client.fcall(name, len(keys), *keys, *arguments)


def _keys(tenant: str) -> list[str]:
    if not tenant or len(tenant) > 256 or "{" in tenant or "}" in tenant:
        raise InvalidRequestError(f"tenant is {tenant[:80]!r}: allowed are 1 to 256 characters without braces")
    return [tenant_key(tenant, part) for part in KEY_PARTS]


def _estimate(request_id: str, prompt_tokens: int, max_tokens: int) -> int:
    if not 0 < len(request_id) <= 256:
        raise InvalidRequestError(f"request_id has {len(request_id)} characters: allowed are 1 to 256")
    if prompt_tokens < 0 or max_tokens < 0 or not 0 < prompt_tokens + max_tokens <= MAX_TOKENS:
        raise InvalidRequestError(
            f"prompt_tokens is {prompt_tokens} and max_tokens {max_tokens}: neither may be negative, and their sum is 1 to 2^53"
        )
    return prompt_tokens + max_tokens


def _milliseconds(name: str, seconds: float) -> int:
    if not 0.001 <= seconds <= 86_400:
        raise InvalidRequestError(f"{name} is {seconds}: allowed is 0.001 to 86400")
    return round(seconds * 1000)


def _bucket(level: str, per_minute: int | None, burst: int | None) -> Bucket | None:
    if per_minute is None:
        return None
    return Bucket(left=float(level), burst=burst or per_minute, per_minute=per_minute)


def _window(reply: list[Any], limit: int | None) -> Window:
    name, used, reserved, resets_ms = reply
    return Window(name=name, used=used, reserved=reserved, limit=limit, resets_ms=resets_ms)
