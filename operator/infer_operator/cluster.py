"""What all runs on one cluster share: its API server, what we know of it, Secrets just read, connections to quota stores.

Nothing here is a truth of its own: all of it is read again, so that losing it costs time only.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from infer_operator.builders import Context, secret
from infer_operator.builders import manifest as m
from infer_operator.kube import CHILDREN, SECRET, Kind, Kube, Object
from infer_operator.metrics import Metrics
from infer_operator.state import Key, Resource
from infer_operator.store import Store
from infer_server.contract.store import DocumentStore, StoreUnavailableError
from infer_server.contract.sweep import StoreSweep

SECRET_SECONDS = 60.0
"""How long a Secret that was read is taken for the newest. Pods that come and go would read all tenants' again and again."""

SWEEPS_AFTER_DELETION = 5
"""How often a store that only a deleted resource used is still looked for: mostly it went with the resource."""

KINDS = {kind.name: kind for kind in CHILDREN}


@dataclass(slots=True)
class _Seen:
    """Secrets of one resource, as read for one state of it."""

    mark: object
    until: float
    secrets: dict[str, Object | None] = field(default_factory=dict)


@dataclass(slots=True)
class _Connection:
    url: str
    documents: DocumentStore


class Secrets:
    """Secrets by name. None is ever watched, so the API server sends us none that we did not ask for."""

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._clock = clock
        self._seen: dict[Key, _Seen] = {}

    def expect(self, key: Key, mark: object) -> None:
        """From here on what was read before is too old if the resource was edited (another `mark`), or after a while."""
        seen = self._seen.get(key)
        if seen is None or seen.mark != mark or self._clock() >= seen.until:
            self._seen[key] = _Seen(mark, self._clock() + SECRET_SECONDS)

    async def read(self, key: Key, name: str) -> Object | None:
        seen = self._seen[key].secrets
        if name not in seen:
            seen[name] = await self._kube.read(SECRET, key.namespace, name)
        return seen[name]

    async def read_anew(self, key: Key, name: str) -> Object | None:
        self._seen[key].secrets.pop(name, None)
        return await self.read(key, name)

    async def create(self, key: Key, manifest: Object) -> Object:
        """Raises ApiError 409 if there is one of that name."""
        name = manifest["metadata"]["name"]
        self._seen[key].secrets.pop(name, None)
        made = await self._kube.create(manifest, SECRET)
        self._seen[key].secrets[name] = made
        return made

    async def delete(self, key: Key, name: str, uid: str) -> None:
        self._seen[key].secrets.pop(name, None)
        await self._kube.delete(SECRET, key.namespace, name, uid)

    def forget(self, key: Key) -> None:
        self._seen.pop(key, None)


class QuotaStores:
    """Connections to the stores of all resources. Only the event loop uses them."""

    def __init__(self) -> None:
        self._connections: dict[Key, _Connection] = {}
        self._sweeps: dict[str, StoreSweep] = {}
        self._left: dict[str, int] = {}
        """stores whose resources went without cleaning up -> how often they are still to be swept"""
        self.operator_id = ""
        """set once we lead: the Lease's uid, which no other operator has"""

    async def documents(self, key: Key, url: str) -> DocumentStore:
        known = self._connections.get(key)
        if known is None or known.url != url:
            await self.forget(key)
            try:
                documents = DocumentStore(url, key.namespace, key.name)
            except ValueError as error:
                raise StoreUnavailableError(f"the quota store's URL is wrong: {error}") from error
            known = self._connections[key] = _Connection(url, documents)
        return known.documents

    def url(self, key: Key) -> str | None:
        """The last that was used for this resource."""
        known = self._connections.get(key)
        return known.url if known else None

    def sweep(self, url: str) -> StoreSweep:
        if url not in self._sweeps:
            self._sweeps[url] = StoreSweep(url, self.operator_id)
        return self._sweeps[url]

    def urls(self) -> set[str]:
        return {connection.url for connection in self._connections.values()} | self._left.keys()

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
        known = self._connections.pop(key, None)
        if known is not None:
            await known.documents.close()
            await self._drop_sweep(known.url)

    async def _drop_sweep(self, url: str) -> None:
        if url not in self.urls() and url in self._sweeps:
            await self._sweeps.pop(url).close()

    async def close(self) -> None:
        self._left.clear()
        for key in list(self._connections):
            await self.forget(key)
        for url in list(self._sweeps):
            await self._sweeps.pop(url).close()


class Cluster:
    def __init__(self, kube: Kube, store: Store, context: Context, metrics: Metrics) -> None:
        self.kube = kube
        self.store = store
        self.context = context
        self.metrics = metrics
        self.secrets = Secrets(kube)
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
        return base64.b64decode(encoded).decode(errors="replace").strip()

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
