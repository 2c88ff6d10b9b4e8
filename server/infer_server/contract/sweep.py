"""What lies in a store, and whose it is: which keys of which deployments may go.

Several clusters, operators and laptops may share a store, so an operator deletes only keys of deployments that it has written
down as its own beforehand (`register`), under an id that no other operator has. That note lies among the deployment's own keys:
a store may let a user see those and no others (charts/valkey), and what such a user cannot read is somebody else's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from infer_server.contract.keys import OPERATOR, PREFIX, operator_key
from infer_server.contract.store import StoreUnavailableError

TIMEOUT_SECONDS = 2.0
SCAN_SECONDS = 60.0
"""A store is somebody else's program: one that never comes to an end of its keys is left."""
MAX_KEYS = 1_000_000
BATCH = 500

Place = tuple[str, str]
"""namespace and deployment"""


class StoreSweep:
    """One store as one operator sees it. One event loop uses it; `close()` gives its connections back."""

    def __init__(self, url: str, operator_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis: Any = Redis.from_url(
            url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(ConstantBackoff(0.02), 1),
            decode_responses=True,
        )
        self._operator_id = operator_id
        self._clock = clock

    async def close(self) -> None:
        await self._redis.aclose()

    async def register(self, namespace: str, deployment: str) -> None:
        """Before anything of the deployment is written. Raises StoreUnavailableError."""
        with _as_unavailable():
            await self._redis.set(operator_key(namespace, deployment), self._operator_id)

    async def registered(self) -> set[Place]:
        """Raises StoreUnavailableError."""
        return await self._ours(await self._keys("*"))

    async def _ours(self, keys: list[str]) -> set[Place]:
        """Of the deployments that have these keys."""
        places = [place for place in {_owner(key)[0] for key in keys} if place is not None]
        found: list[Any] = []
        for start in range(0, len(places), BATCH):
            with _as_unavailable():
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for place in places[start : start + BATCH]:
                        pipeline.get(operator_key(*place))
                    found += await pipeline.execute(raise_on_error=False)
        for answer in found:
            if isinstance(answer, Exception) and not isinstance(answer, exceptions.NoPermissionError):
                with _as_unavailable():
                    raise answer
        return {place for place, answer in zip(places, found, strict=True) if answer == self._operator_id}

    async def purge_tenants(self, namespace: str, deployment: str) -> int:
        """All keys of all its tenants: limits, what they used, requests, audit. How many. Raises StoreUnavailableError."""
        return await self._unlink(await self._keys(f"{{{namespace}/{deployment}/*}}:*"))

    async def purge(self, namespace: str, deployment: str) -> int:
        """Everything of one deployment, its document and our note of it last. Raises StoreUnavailableError."""
        number = await self.purge_tenants(namespace, deployment)
        return number + await self._unlink(await self._keys(f"{{{namespace}/{deployment}}}:*"))

    async def sweep(self, live: Callable[[], Mapping[Place, Iterable[str]]]) -> int:
        """Delete what has no owner any more, of deployments that are noted as ours. How many keys. Raises StoreUnavailableError.

        `live` gives the deployments that exist, with their tenants. It is asked after the keys were listed: what is new meanwhile
        is never taken for an orphan.
        """
        keys = await self._keys("*")
        ours = await self._ours(keys)
        found = [(key, *_owner(key)) for key in keys]
        there = {place: frozenset(tenants) for place, tenants in live().items()}
        orphans = [
            key
            for key, place, tenant in found
            if place in ours and (place not in there or (tenant is not None and tenant not in there[place]))
        ]
        return await self._unlink(orphans)

    async def _keys(self, pattern: str) -> list[str]:
        """Names of namespaces, deployments and tenants hold no character that is special in a pattern."""
        keys: list[str] = []
        cursor, until = 0, self._clock() + SCAN_SECONDS
        while True:
            with _as_unavailable():
                cursor, page = await self._redis.scan(cursor, match=f"{PREFIX}:{pattern}", count=BATCH)
            keys += page
            if cursor == 0:
                return keys
            if self._clock() > until or len(keys) > MAX_KEYS:
                raise StoreUnavailableError(
                    f"the store does not come to an end of its keys ({MAX_KEYS} or {SCAN_SECONDS:g} s)"
                )

    async def _unlink(self, keys: list[str]) -> int:
        """One by one in a pipeline: a cluster takes no call over several hash tags. Our notes last: the rest is ours by them."""
        keys = sorted(keys, key=lambda key: key.endswith(OPERATOR))
        for start in range(0, len(keys), BATCH):
            with _as_unavailable():
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for key in keys[start : start + BATCH]:
                        pipeline.unlink(key)
                    await pipeline.execute()
        return len(keys)


def _owner(key: str) -> tuple[Place | None, str | None]:
    """Of inferengine:{namespace/deployment}:part or inferengine:{namespace/deployment/tenant}:part."""
    tag = key.partition("{")[2].partition("}")[0].split("/")
    if len(tag) not in (2, 3):
        return None, None
    return (tag[0], tag[1]), tag[2] if len(tag) == 3 else None


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except exceptions.ResponseError as error:
        raise StoreUnavailableError(f"the store refused: {error}") from error
    except (exceptions.RedisError, OSError) as error:
        raise StoreUnavailableError(f"the store gave no answer: {error}") from error
