"""What all runs on one cluster share: its API server, what we know of it, Secrets just read, connections to quota stores.

Nothing here is a truth of its own: all of it is read again, so that losing it costs time only.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis

from infer_operator.builders import Context, secret
from infer_operator.builders import manifest as m
from infer_operator.kube import CHILDREN, OPTIONAL, SECRET, Kind, Kube, Object
from infer_operator.metrics import Metrics
from infer_operator.rounds import LOOK_SECONDS
from infer_operator.state import Key, Resource
from infer_operator.store import Store
from infer_operator.store_url import checked
from infer_server.contract.store import DocumentStore, StoreUnavailableError, connection
from infer_server.contract.sweep import StoreSweep

FRESH_PART = 2 / 3
"""of the time between two looks at a resource: so long a Secret that was read is taken for the newest. Pods that come and go
would ask for all tenants' again and again."""

SWEEPS_AFTER_DELETION = 5
"""How often a store that only a deleted resource used is still looked for: mostly it went with the resource."""

KINDS = {kind.name: kind for kind in (*CHILDREN, *OPTIONAL)}


@dataclass(slots=True)
class _Seen:
    """Secrets of one resource, as read for one state of it."""

    mark: object
    until: float
    secrets: dict[str, Object | None] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    """of those, the ones that may have changed meanwhile"""


@dataclass(slots=True)
class _Pool:
    """Connections to one store, and who uses them."""

    redis: Redis
    users: dict[Key, DocumentStore] = field(default_factory=dict)


class Secrets:
    """Secrets by name. None is ever watched, so the API server sends us none that we did not ask for.

    What was read stays here. After a while it is asked for its version alone, and read again if that has changed: a Secret that
    somebody edits or deletes is noticed with the next look at its resource (rounds.py).
    """

    def __init__(self, kube: Kube, fresh_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._seen: dict[Key, _Seen] = {}

    def expect(self, key: Key, mark: object) -> None:
        """From here on what was read before is too old if the resource was edited (another `mark`), in doubt after a while."""
        seen = self._seen.get(key)
        if seen is None or seen.mark != mark:
            self._seen[key] = _Seen(mark, self._clock() + self._fresh_seconds)
        elif self._clock() >= seen.until:
            seen.doubtful, seen.until = set(seen.secrets), self._clock() + self._fresh_seconds

    async def read(self, key: Key, name: str) -> Object | None:
        """`name` is `NAMESPACE/NAME` for one in another namespace than the resource's; likewise in `delete`."""
        seen = self._seen[key]
        if name in seen.doubtful and name in seen.secrets:
            version = await self._kube.version(SECRET, *_where(key, name))
            if version != _version(seen.secrets[name]):
                del seen.secrets[name]
        seen.doubtful.discard(name)
        if name not in seen.secrets:
            seen.secrets[name] = await self._kube.read(SECRET, *_where(key, name))
        return seen.secrets[name]

    async def read_anew(self, key: Key, name: str) -> Object | None:
        self._seen[key].secrets.pop(name, None)
        return await self.read(key, name)

    async def create(self, key: Key, manifest: Object) -> Object:
        """Raises ApiError 409 if there is one of that name."""
        name = _name(key, manifest)
        self._seen[key].secrets.pop(name, None)
        made = await self._kube.create(manifest, SECRET)
        self._seen[key].secrets[name] = made
        return made

    async def patch(self, key: Key, found: Object, data: Mapping[str, str | None]) -> Object:
        """Into this very Secret; None takes an entry away."""
        name, uid = _name(key, found), found["metadata"]["uid"]
        self._seen[key].secrets.pop(name, None)
        patched = await self._kube.merge(SECRET, *_where(key, name), {"metadata": {"uid": uid}, "data": data})
        self._seen[key].secrets[name] = patched
        return patched

    async def delete(self, key: Key, name: str, uid: str) -> None:
        self._seen[key].secrets.pop(name, None)
        await self._kube.delete(SECRET, *_where(key, name), uid)

    def forget(self, key: Key) -> None:
        self._seen.pop(key, None)


def _name(key: Key, secret: Object) -> str:
    meta = secret["metadata"]
    name: str = meta["name"]
    return name if meta["namespace"] == key.namespace else f"{meta['namespace']}/{name}"


def _where(key: Key, name: str) -> tuple[str, str]:
    """Namespace and name."""
    namespace, _, plain = name.rpartition("/")
    return namespace or key.namespace, plain


def _version(found: Object | None) -> str | None:
    return None if found is None else found["metadata"]["resourceVersion"]


class QuotaStores:
    """Connections to the stores of all resources, shared by those of one URL. Only the event loop uses them."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}
        self._urls: dict[Key, str] = {}
        self._sweeps: dict[str, StoreSweep] = {}
        self._left: dict[str, int] = {}
        """stores whose resources went without cleaning up -> how often they are still to be swept"""
        self.operator_id = ""
        """set once we lead: the Lease's uid, which no other operator has"""

    async def documents(self, key: Key, url: str) -> DocumentStore:
        if self._urls.get(key) != url:
            await self.forget(key)
            if url not in self._pools:
                try:
                    self._pools[url] = _Pool(connection(url))
                except ValueError as error:
                    raise StoreUnavailableError(f"the quota store's URL is wrong: {error}") from error
            pool = self._pools[url]
            pool.users[key] = DocumentStore(pool.redis, key.namespace, key.name)
            self._urls[key] = url
        return self._pools[url].users[key]

    def url(self, key: Key) -> str | None:
        """The last that was used for this resource."""
        return self._urls.get(key)

    def sweep(self, url: str) -> StoreSweep:
        if url not in self._sweeps:
            self._sweeps[url] = StoreSweep(url, self.operator_id)
        return self._sweeps[url]

    def urls(self) -> set[str]:
        return self._pools.keys() | self._left.keys()

    def leave(self, key: Key) -> None:
        """The resource went without cleaning up: its store is swept a few times more, also if no other resource uses it."""
        if (url := self.url(key)) is not None:
            self._left[url] = SWEEPS_AFTER_DELETION

    async def swept(self, url: str, *, reached: bool) -> None:
        if url in self._left:
            self._left[url] -= 1
            if reached or self._left[url] == 0:
                del self._left[url]
                await self._drop_sweep(url)

    async def forget(self, key: Key) -> None:
        url = self._urls.pop(key, None)
        if url is None:
            return
        pool = self._pools[url]
        del pool.users[key]
        if not pool.users:
            del self._pools[url]
            await pool.redis.aclose()
            await self._drop_sweep(url)

    async def _drop_sweep(self, url: str) -> None:
        if url not in self.urls() and url in self._sweeps:
            await self._sweeps.pop(url).close()

    async def close(self) -> None:
        self._left.clear()
        for key in list(self._urls):
            await self.forget(key)
        for url in list(self._sweeps):
            await self._sweeps.pop(url).close()


class Cluster:
    def __init__(
        self, kube: Kube, store: Store, context: Context, metrics: Metrics, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self.kube = kube
        self.store = store
        self.context = context
        """replaced when the server comes to know PodMonitors, or forgets them"""
        self.metrics = metrics
        self.only_namespace = ""
        """the one that the operator looks after, with rights nowhere else; empty: all"""
        self.secrets = Secrets(kube, look_seconds * FRESH_PART)
        self.stores = QuotaStores()
        self.stubborn: dict[tuple[Key, str], tuple[str, ...]] = {}
        """by object: what the API server did not take over when we applied it. Applying it again would never end."""

    async def forget(self, key: Key) -> None:
        """The resource is gone."""
        self.secrets.forget(key)
        for name in [name for owner, name in self.stubborn if owner == key]:
            del self.stubborn[key, name]
        await self.stores.forget(key)

    async def store_url(self, key: Key, resource: Resource, keys: secret.Keys) -> str:
        """Raises StoreUnavailableError that says what is missing."""
        reference = resource.deployment.spec.quota_store.url_secret_ref
        if reference is None:
            return self._embedded_url(key, resource, keys)
        found = await self.secrets.read(key, reference.name)
        encoded = ((found or {}).get("data") or {}).get(reference.key)
        if encoded is None:
            raise StoreUnavailableError(
                f"Secret {key.namespace}/{reference.name} with {reference.key} is not there: make it"
            )
        try:
            return checked(base64.b64decode(encoded).decode(errors="replace").strip())
        except ValueError as error:
            raise StoreUnavailableError(
                f"Secret {key.namespace}/{reference.name}, {reference.key}: the quota store's URL is wrong: {error}"
            ) from error

    def _embedded_url(self, key: Key, resource: Resource, keys: secret.Keys) -> str:
        """By the Service's address: the operator may run where the cluster's names don't resolve."""
        service = self.store.children(key).get(("Service", m.store_name(resource)))
        address = ((service or {}).get("spec") or {}).get("clusterIP")
        if not address:
            raise StoreUnavailableError("the quota store's Service is not there yet")
        parts = urlsplit(secret.embedded_store_url(resource, keys))
        host = f"[{address}]" if ":" in address else address
        user = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{user}@{host}:{parts.port}"))

    def kind(self, manifest: Object) -> Kind:
        return KINDS[manifest["kind"]]
