"""A cluster as a home for pods: one run of one resource. What is there in; what was due out, each change by its own request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import assert_never

import msgspec

from infer_operator import conditions
from infer_operator.backends import copies, handouts
from infer_operator.backends.applied import Applied
from infer_operator.backends.drift import sealed
from infer_operator.backends.ledgers import LedgerKeeper
from infer_operator.backends.pods import Pods
from infer_operator.backends.protocol import RefusedError
from infer_operator.backends.tenants import Tenants, is_owned, taken
from infer_operator.builders import manifest as m
from infer_operator.builders import objects, secret
from infer_operator.cluster import Cluster
from infer_operator.events import transitions
from infer_operator.kube import DEPLOYMENT, EVENT, RESOURCE, ApiError, KubeError, Object
from infer_operator.state import (
    Change,
    Content,
    DeleteObject,
    Key,
    Observed,
    RemoveTenants,
    Resource,
    SaveTenants,
    TenantRecord,
    WriteDocument,
    WriteObject,
)
from infer_operator.status import Access, Health, Reports, Status
from infer_server.contract.document import DesiredState
from infer_server.contract.store import DocumentStore, StoreUnavailableError

log = logging.getLogger(__name__)


class KubernetesBackend:
    """Made anew for each run, so nothing that was observed outlives it. `prepare` comes first."""

    def __init__(self, cluster: Cluster, key: Key, raw: Object, resource: Resource) -> None:
        self._cluster = cluster
        self._kube = cluster.kube
        self._key = key
        self._raw = raw
        self._resource = resource
        self._annotations: Mapping[str, str] = raw["metadata"].get("annotations", {})
        self._server_public_key = ""
        self._documents: DocumentStore | None = None
        self._store_url = ""
        self._stored: DesiredState | None = None
        self._tenants: Tenants | None = None
        self._objects = Applied(cluster, key, resource.uid)
        self._ledger = LedgerKeeper(self._objects, resource)
        self.pods = Pods(cluster, key)
        self._handouts = handouts.Handouts(cluster, key, resource)
        self._copies = copies.Copies(cluster, key, resource)

    # --- observe -----------------------------------------------------------------------------------------------------
    async def prepare(self) -> None:
        """The deployment's own keys, made once: everything else needs them. Raises RefusedError and KubeError."""
        self._cluster.secrets.expect(self._key, (self._resource.uid, self._resource.generation, self._annotations))
        await copies.take_back(self._cluster, self._key, but=self._resource.uid)
        made = await self._own_keys()
        self._server_public_key = made.server_public_key
        try:
            self._store_url = await self._cluster.store_url(self._key, self._resource, made)
            self._documents = await self._cluster.stores.documents(self._key, self._store_url)
        except StoreUnavailableError as error:
            self._store_error: str | None = str(error)
        else:
            self._store_error = None

    async def _own_keys(self) -> secret.Keys:
        name = m.server_name(self._resource)
        found = await self._cluster.secrets.read(self._key, name)
        if found is None:
            try:
                minted = secret.keys_secret(self._resource, secret.mint_keys())
                found = await self._cluster.secrets.create(self._key, minted)
            except ApiError as error:
                if error.status != 409:
                    raise
                found = await self._cluster.secrets.read_anew(self._key, name)
        if found is None or not is_owned(found, self._resource.uid):
            raise RefusedError(taken("Secret", found) if found else f"Secret {self._key}: gone again")
        try:
            return secret.read_keys(found)
        except secret.SecretDamagedError as error:
            raise RefusedError(str(error)) from error

    async def observe(self, key: Key) -> Observed:
        self._ledger.read()
        await self._read_document()
        self._tenants = Tenants(
            self._cluster.secrets, key, self._resource, self._annotations, self._ledger.now, self._stored
        )
        records, recovered = await self._tenants.read()
        noted = self._ledger.now.document
        built = {title: child for title, child in self._objects.observed().items() if title != self._ledger.title}
        return Observed(
            resource=self._resource,
            records=records,
            recovered=recovered,
            retired_ports=self._ledger.now.retired_ports,
            objects=built | await self._handouts.observe() | await self._copies.observe(),
            document=self._stored,
            last_revision=noted.version.revision if noted is not None else 0,
            store_error=self._store_error,
            damaged=(*filter(None, [self._ledger.damage]), *self._tenants.damaged, *self._copies.denied),
        )

    async def _read_document(self) -> None:
        if self._documents is None:
            return
        try:
            self._stored = await self._documents.read()
        except StoreUnavailableError as error:
            self._store_error = str(error)
        except msgspec.DecodeError as error:
            self._store_error = f"the document in the store is not understood: {error}"

    # --- build and compare -------------------------------------------------------------------------------------------
    def build(self, key: Key, resource: Resource, records: Mapping[str, TenantRecord]) -> Mapping[str, Content]:
        wanted = map(sealed, objects(resource, records, self._cluster.context))
        made: dict[str, Content] = {f"{one['kind']}/{one['metadata']['name']}": one for one in wanted}
        told = self._handouts.contents(records, self._server_public_key)
        return made | self._handouts.build(told) | self._copies.build(told)

    def same(self, name: str, observed: Content | None, wanted: Content) -> bool:
        return observed is not None and self._objects.same(name, observed, wanted)

    def claim_port(self, port: int) -> bool:
        """Each pod has all ports to itself."""
        return True

    # --- apply -------------------------------------------------------------------------------------------------------
    async def apply(self, key: Key, change: Change) -> None:
        match change:
            case SaveTenants(records):
                await self._save_tenants(records)
            case WriteObject(name, content):
                assert isinstance(content, dict)
                if name.startswith(handouts.PREFIX):
                    await self._handouts.write(name, content)
                elif name.startswith(copies.PREFIX):
                    await self._copies.write(name, content)
                else:
                    await self._objects.write(name, content)
            case DeleteObject(name):
                if not name.startswith(copies.PREFIX):  # of a copy the note goes, and with that the copy
                    await self._objects.delete(name)
            case RemoveTenants(records, free_at):
                await self._remove_tenants(records, free_at)
            case WriteDocument(document, expected):
                await self._write_document(document, expected)
            case _:
                assert_never(change)

    async def _save_tenants(self, records: tuple[TenantRecord, ...]) -> None:
        assert self._tenants is not None
        await self._ledger.give(records)
        refusals = []
        for record in records:
            try:
                await self._tenants.save(record, self._handouts.endpoint(record), self._server_public_key)
            except RefusedError as error:  # the others need not wait for it
                refusals.append(str(error))
        if refusals:
            raise RefusedError("\n".join(refusals))

    async def _remove_tenants(self, records: tuple[TenantRecord, ...], free_at: float) -> None:
        assert self._tenants is not None
        for record in records:
            await self._tenants.remove(record.name)
        await self._ledger.retire(records, free_at)

    async def _write_document(self, document: DesiredState, expected: int) -> None:
        assert self._documents is not None
        await self._ledger.note(document)
        sweep = self._cluster.stores.sweep(self._store_url)
        await sweep.register(self._key.namespace, self._key.name)
        if self._stored is not None and self._stored.version.uid != self._resource.uid:
            # A namesake was deleted and nothing could be cleaned up then: what its tenants used is not this one's.
            await sweep.purge_tenants(self._key.namespace, self._key.name)
        await self._documents.write(document, expected)

    @property
    def learned_endpoints(self) -> bool:
        return self._objects.learned_endpoints

    # --- report ------------------------------------------------------------------------------------------------------
    def access(self, key: Key, record: TenantRecord) -> Access:
        return Access(self._handouts.endpoint(record), secret.tenant_secret_name(self._key.name, record.name))

    async def health(self, key: Key) -> Health:
        found = self._objects.child(DEPLOYMENT, m.server_name(self._resource))
        owned = found if found is not None and is_owned(found, self._resource.uid) else None
        pods, reports = self.pods.all(), await self._reports()
        return conditions.health(self._resource, owned, pods, self.pods.all(m.STORE), reports)

    async def _reports(self) -> Reports | None:
        if self._documents is None:
            return None
        try:
            return await self._documents.reports([pod["metadata"]["name"] for pod in self.pods.all()])
        except StoreUnavailableError:
            return None

    async def last_status(self, key: Key) -> Status | None:
        try:
            return msgspec.convert(self._raw["status"], Status)
        except (KeyError, msgspec.ValidationError):  # it can be made anew from what is there
            return None

    async def report(self, key: Key, status: Status) -> None:
        """With the resourceVersion that was observed: a stale answer, or one for a deleted namesake, is refused (409)."""
        before = await self.last_status(key)
        await write_status(self._cluster, self._raw, msgspec.to_builtins(status))
        for event in transitions(self._raw, before, status):
            try:
                await self._kube.create(event, EVENT)
            except KubeError as error:  # the status says it too
                log.warning("%s: an Event could not be written: %s", key, error)


async def write_status(cluster: Cluster, raw: Object, status: Object) -> None:
    meta = {name: raw["metadata"][name] for name in ("namespace", "name", "resourceVersion")}
    body = {"apiVersion": RESOURCE.api_version, "kind": RESOURCE.name, "metadata": meta, "status": status}
    cluster.store.put(RESOURCE, await cluster.kube.apply(body, RESOURCE, subresource="status"))
