"""Where the desired state lives between the operator, which writes it, and the pods, which follow it.

In flow documents with the revision that their writer read, and pods' reports; out flow the newest document and, to followers,
each newer one, and to the writer what the pods reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Iterator
from importlib import resources
from typing import Any, cast

import msgspec
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from infer_server.contract.document import DesiredState, decode, encode
from infer_server.contract.keys import document_channel, document_key, pod_report_key, tenant_key
from infer_server.contract.limits import encode_limits
from infer_server.contract.report import REPORT_TTL_SECONDS, PodReport, decode_report, encode_report

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 0.25
POLL_SECONDS = 1.0


class StoreUnavailableError(Exception):
    """The store gave no answer in time, or refused: try again later. What was asked may or may not have taken effect."""


class RevisionConflictError(Exception):
    """Another writer was faster, or a lost answer was ours: read again, then decide anew."""

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"the document's revision is {found}, not {expected}: read it again")
        self.expected = expected
        self.found = found


def connection(url: str) -> Redis:
    """As many connections as are used at once; whoever asked for them closes them. Raises ValueError."""
    # redis-py's own defaults are 10 retries and 5 s a piece: a caller would hang for most of a minute.
    return Redis.from_url(
        url,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(ConstantBackoff(0.02), 1),
    )


class DocumentStore:
    """The document of one deployment. One event loop uses it; `close()` gives its connections back."""

    def __init__(self, store: str | Redis, namespace: str, deployment: str) -> None:
        """`store`: a URL, or what `connection` made for several deployments, which stays open when this one is closed."""
        self._is_ours = isinstance(store, str)
        self._redis: Any = connection(store) if isinstance(store, str) else store
        self._key = document_key(namespace, deployment)
        self._channel = document_channel(namespace, deployment)
        self._place = (namespace, deployment)
        script = resources.files("infer_server.contract").joinpath("scripts/write_document.lua").read_text()
        self._write_document = self._redis.register_script(script)

    async def close(self) -> None:
        if self._is_ours:
            await self._redis.aclose()

    async def ping(self) -> None:
        """Raises StoreUnavailableError."""
        with _as_unavailable():
            await self._redis.ping()

    async def read(self) -> DesiredState | None:
        """The newest document, None before the first. Raises StoreUnavailableError; ValidationError if it is not ours to read."""
        with _as_unavailable():
            body = await self._redis.hget(self._key, "body")
        return None if body is None else decode(cast(bytes, body))

    async def write(self, document: DesiredState, expected_revision: int) -> None:
        """Replace the document whose revision is `expected_revision` (0: there is none) with its tenants' limits.

        The revision has to rise also when the uid changes: it is what the comparison rests on.
        Raises RevisionConflictError, StoreUnavailableError, and ValueError for a revision that does not rise.
        """
        if document.version.revision <= expected_revision:
            raise ValueError(f"revision: got {document.version.revision}; must be greater than {expected_revision}")
        before = await self.read()
        found = 0 if before is None else before.version.revision
        if found == expected_revision:
            keys, arguments = self._call(before, document, expected_revision)
            with _as_unavailable():
                found = int(await self._write_document(keys=keys, args=arguments))
        if found != expected_revision:
            raise RevisionConflictError(expected_revision, found)

    async def report(self, pod: str, said: PodReport) -> None:
        """In place of what the pod said before; it ends by itself. Raises StoreUnavailableError."""
        with _as_unavailable():
            await self._redis.set(pod_report_key(*self._place, pod), encode_report(said), ex=REPORT_TTL_SECONDS)

    async def reports(self, pods: Collection[str]) -> dict[str, PodReport | None]:
        """What each of these pods said last; None of one that has said nothing lately. Raises StoreUnavailableError."""
        if not pods:
            return {}
        with _as_unavailable():
            found = await self._redis.mget([pod_report_key(*self._place, pod) for pod in pods])
        return {
            pod: None if body is None else decode_report(cast(bytes, body))
            for pod, body in zip(pods, found, strict=True)
        }

    def _call(self, before: DesiredState | None, document: DesiredState, expected: int) -> tuple[list[str], list[Any]]:
        """KEYS and ARGV of scripts/write_document.lua."""
        version = document.version
        ids = [document.tenant_id(tenant.name) for tenant in document.tenants]
        left = {before.tenant_id(tenant.name) for tenant in before.tenants} - set(ids) if before else set()
        keys = [
            self._key,
            *(tenant_key(id, "limits") for id in ids),
            *(tenant_key(id, "limits") for id in sorted(left)),
        ]
        arguments: list[Any] = [expected, version.uid, version.generation, version.revision, encode(document)]
        arguments += [self._channel, len(ids)]
        for tenant in document.tenants:
            fields = [part for pair in encode_limits(tenant.quota).items() for part in pair]
            arguments += [len(fields), *fields]
        return keys, arguments

    async def follow(self) -> AsyncIterator[DesiredState]:
        """The current document, then each newer one as it comes; it ends only with the caller.

        Announcements make it quick, a poll each second makes it sure: a lost message or a restart of the store costs a second.
        A store that came back with an older version of the same uid (its last writes lost)
        yields nothing until it is newer again.
        """
        last: DesiredState | None = None
        trouble = ""
        while True:
            try:
                async with self._redis.pubsub() as announcements:
                    await announcements.subscribe(self._channel)
                    while True:
                        document = await self._newer(last)
                        trouble = ""
                        if document is not None:
                            last = document
                            yield document
                        await announcements.get_message(ignore_subscribe_messages=True, timeout=POLL_SECONDS)
            except (StoreUnavailableError, exceptions.RedisError, OSError, msgspec.ValidationError) as error:
                if str(error) != trouble:  # said once, not at each try
                    trouble = str(error)
                    log.warning("the desired state cannot be followed, the last one stays: %s", error)
                await asyncio.sleep(TIMEOUT_SECONDS)

    async def _newer(self, last: DesiredState | None) -> DesiredState | None:
        """The stored document if it succeeds `last`. The version is read first: it is small, and mostly the same."""
        with _as_unavailable():
            uid, generation, revision = await self._redis.hmget(self._key, "uid", "generation", "revision")
        if uid is None or (last is not None and not _succeeds(uid.decode(), int(generation), int(revision), last)):
            return None
        document = await self.read()
        if document is None or last is None:
            return document
        version = document.version  # not what was read above: a write may have come between
        return document if _succeeds(version.uid, version.generation, version.revision, last) else None


def _succeeds(uid: str, generation: int, revision: int, last: DesiredState) -> bool:
    """A different uid replaces: the resource was deleted and made again."""
    seen = last.version
    return uid != seen.uid or (generation, revision) > (seen.generation, seen.revision)


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except exceptions.ResponseError as error:  # out of memory, read-only, no permission
        raise StoreUnavailableError(f"the store refused: {error}") from error
    except (exceptions.RedisError, OSError) as error:
        raise StoreUnavailableError(f"the store gave no answer: {error}") from error
