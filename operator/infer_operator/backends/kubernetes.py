"""A cluster as a home for pods: one run of one resource. What is there in; what was due out, each change by its own request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

import msgspec

from infer_operator import conditions, endpoints
from infer_operator.backends import copies, handouts
from infer_operator.backends.drift import differences, sealed
from infer_operator.backends.protocol import RefusedError
from infer_operator.backends.tenants import Tenants, is_owned, taken
from infer_operator.builders import configmap, objects, secret, service
from infer_operator.builders import manifest as m
from infer_operator.builders.configmap import Given, Ledger
from infer_operator.builders.copies import is_from
from infer_operator.cluster import KINDS, Cluster
from infer_operator.events import transitions
from infer_operator.kube import (
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    OPTIONAL,
    POD,
    REFUSALS,
    RESOURCE,
    ApiError,
    Kind,
    KubeError,
    Object,
)
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
        self._ledger = Ledger()
        self._documents: DocumentStore | None = None
        self._store_url = ""
        self._stored: DesiredState | None = None
        self._tenants: Tenants | None = None
        self.learned_endpoints = False
        """A Service was written just now: what it tells, such as its node port, is not in Secrets and status yet"""
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
        damaged: list[str] = []
        self._ledger = self._read_ledger(damaged)
        await self._read_document()
        self._tenants = Tenants(
            self._cluster.secrets, key, self._resource, self._annotations, self._ledger, self._stored
        )
        records, recovered = await self._tenants.read()
        noted = self._ledger.document
        return Observed(
            resource=self._resource,
            records=records,
            recovered=recovered,
            retired_ports=self._ledger.retired_ports,
            objects={
                **self._observed_objects(),
                **await self._handouts.observe(),
                **await self._copies.observe(),
            },
            document=self._stored,
            last_revision=noted.version.revision if noted is not None else 0,
            store_error=self._store_error,
            damaged=(*damaged, *self._tenants.damaged, *self._copies.denied),
        )

    def _observed_objects(self) -> dict[str, Content]:
        """Those of this very resource: what a namesake left is not ours to change or to delete. The ledger is no such object."""
        ledger = (CONFIG_MAP.name, configmap.ledger_name(self._key.name))
        return {
            f"{kind}/{name}": child
            for (kind, name), child in self._cluster.store.children(self._key).items()
            if kind in KINDS and (kind, name) != ledger and self._is_ours(child)
        }

    def _is_ours(self, found: Object) -> bool:
        """In another namespace nothing can have our resource for an owner: what is there names it in an annotation."""
        return is_owned(found, self._resource.uid) or is_from(found, self._resource.uid)

    def _read_ledger(self, damaged: list[str]) -> Ledger:
        name = configmap.ledger_name(self._key.name)
        found = self._child(CONFIG_MAP, name)
        if found is not None and not is_owned(found, self._resource.uid):
            raise RefusedError(taken(CONFIG_MAP.name, found))
        try:
            return configmap.read_ledger(found)
        except msgspec.DecodeError as error:
            damaged.append(f"ConfigMap {self._key.namespace}/{name}: {error}; it is made anew from Secrets and store")
            return Ledger()

    async def _read_document(self) -> None:
        if self._documents is None:
            return
        try:
            self._stored = await self._documents.read()
        except StoreUnavailableError as error:
            self._store_error = str(error)
        except msgspec.DecodeError as error:
            self._store_error = f"the document in the store is not understood: {error}"

    def _child(self, kind: Kind, name: str) -> Object | None:
        return self._cluster.store.children(self._key).get((kind.name, name))

    # --- build and compare -------------------------------------------------------------------------------------------
    def build(self, key: Key, resource: Resource, records: Mapping[str, TenantRecord]) -> Mapping[str, Content]:
        wanted = map(sealed, objects(resource, records, self._cluster.context))
        made: dict[str, Content] = {f"{one['kind']}/{one['metadata']['name']}": one for one in wanted}
        told = self._handouts.contents(records, self._server_public_key)
        return made | self._handouts.build(told) | self._copies.build(told)

    def same(self, name: str, observed: Content | None, wanted: Content) -> bool:
        if observed is None:
            return False
        gaps = tuple(differences(observed, wanted))
        if gaps and gaps != self._cluster.stubborn.get((self._key, name)):
            return False
        self._cluster.metrics.applies_skipped.labels(name.partition("/")[0]).inc()
        return True

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
                    await self._write_object(name, content)
            case DeleteObject(name):
                await self._delete_object(name)
            case RemoveTenants(records, free_at):
                await self._remove_tenants(records, free_at)
            case WriteDocument(document, expected):
                await self._write_document(document, expected)
            case _:
                assert_never(change)

    async def _save_tenants(self, records: tuple[TenantRecord, ...]) -> None:
        assert self._tenants is not None
        given = {
            record.name: Given(uid=record.uid, port=record.port, own_keys=not record.client_public_key)
            for record in records
        }
        if given != {name: self._ledger.given.get(name) for name in given}:
            await self._save_ledger(replace(self._ledger, given={**self._ledger.given, **given}))
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
        names = {record.name for record in records}
        now = free_at - endpoints.QUARANTINE_SECONDS
        resting = {port: at for port, at in self._ledger.retired_ports.items() if at > now}
        await self._save_ledger(
            replace(
                self._ledger,
                given={name: given for name, given in self._ledger.given.items() if name not in names},
                retired_ports=resting | {record.port: free_at for record in records},
            )
        )

    async def _write_document(self, document: DesiredState, expected: int) -> None:
        """Noted first: if the answer is lost, no later document can have this revision."""
        assert self._documents is not None
        await self._save_ledger(replace(self._ledger, document=document))
        sweep = self._cluster.stores.sweep(self._store_url)
        await sweep.register(self._key.namespace, self._key.name)
        if self._stored is not None and self._stored.version.uid != self._resource.uid:
            # A namesake was deleted and nothing could be cleaned up then: what its tenants used is not this one's.
            await sweep.purge_tenants(self._key.namespace, self._key.name)
        await self._documents.write(document, expected)

    async def _save_ledger(self, ledger: Ledger) -> None:
        """With the resourceVersion that was read: what another wrote since is not lost, the run is repeated."""
        manifest = configmap.ledger_config_map(self._resource, ledger)
        known = self._child(CONFIG_MAP, manifest["metadata"]["name"])
        if known is None:
            await self._create_object(CONFIG_MAP, manifest)
        else:
            manifest["metadata"]["resourceVersion"] = known["metadata"]["resourceVersion"]
            self._took(CONFIG_MAP, await self._kube.apply(manifest, CONFIG_MAP))
        self._ledger = ledger

    async def _write_object(self, name: str, wanted: Object) -> None:
        kind = KINDS[wanted["kind"]]
        known = self._child(kind, name.partition("/")[2])
        if known is not None and not self._is_ours(known):
            raise RefusedError(taken(kind.name, known))
        try:
            if known is None:
                applied = await self._create_object(kind, wanted)
            else:
                meta = wanted["metadata"] | {"uid": known["metadata"]["uid"]}  # a precondition
                applied = self._took(kind, await self._kube.apply(wanted | {"metadata": meta}, kind))
        except ApiError as error:
            if error.status == 404 and kind in OPTIONAL:
                return  # its definition went this moment: whoever follows it will notice
            if error.status in REFUSALS:
                meta = wanted["metadata"]
                raise RefusedError(f"{kind.name} {meta['namespace']}/{meta['name']}: {error.message}") from error
            raise
        self.learned_endpoints |= kind.name == "Service" and applied["spec"].get("type") != "ClusterIP"
        self._note_gaps(name, applied, wanted)

    async def _create_object(self, kind: Kind, wanted: Object) -> Object:
        """Server-side apply makes an object or changes one: so look first, and take no field that another has set meanwhile."""
        namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]
        found = await self._kube.read(kind, namespace, name)
        if found is not None and not self._is_ours(found):
            raise RefusedError(taken(kind.name, found))
        return self._took(kind, await self._kube.apply(wanted, kind, force=found is not None))

    def _took(self, kind: Kind, applied: Object) -> Object:
        self._cluster.metrics.applies_sent.labels(kind.name).inc()
        self._cluster.store.put(kind, applied)
        return applied

    def _note_gaps(self, name: str, applied: Object, wanted: Object) -> None:
        gaps = tuple(differences(applied, wanted))
        if not gaps:
            self._cluster.stubborn.pop((self._key, name), None)
        elif self._cluster.stubborn.get((self._key, name)) != gaps:
            log.warning("%s: %s: the API server keeps its own %s", self._key, name, ", ".join(gaps))
            self._cluster.stubborn[self._key, name] = gaps

    async def _delete_object(self, title: str) -> None:
        if title.startswith(copies.PREFIX):
            return  # its note goes, and with that the copy
        kind_name, _, name = title.partition("/")
        found = self._child(KINDS[kind_name], name)
        if found is not None and "deletionTimestamp" not in found["metadata"]:
            meta = found["metadata"]
            await self._kube.delete(KINDS[kind_name], meta["namespace"], meta["name"], meta["uid"])

    # --- pods --------------------------------------------------------------------------------------------------------
    async def label_pods(self) -> None:
        """Put each slot's label on the ready pods that are best for it. While none is ready, nothing changes: none is better."""
        pods = {pod["metadata"]["uid"]: pod for pod in self._pods() if is_ready(pod)}
        for uid, slots in endpoints.assign_slots(pods).items():
            meta = pods[uid]["metadata"]
            wanted = {service.slot_label(slot) for slot in slots}
            has = {name for name in meta.get("labels", {}) if name.startswith(m.SLOT_LABEL_PREFIX)}
            labels = dict.fromkeys(wanted - has, "true") | dict.fromkeys(has - wanted)
            if labels:
                patch = {"metadata": {"uid": uid, "labels": labels}}
                try:
                    patched = await self._kube.merge(POD, self._key.namespace, meta["name"], patch)
                except ApiError as error:
                    if error.status in (404, 409):  # gone: its event is on the way
                        continue
                    raise
                self._cluster.store.put(POD, patched)

    def _pods(self, component: str = m.SERVER) -> list[Object]:
        """In one order, or a message that names some would change with each restart."""
        children = sorted(self._cluster.store.children(self._key).items())
        return [
            pod
            for (kind, _), pod in children
            if kind == POD.name and pod["metadata"].get("labels", {}).get(m.COMPONENT_LABEL) == component
        ]

    # --- report ------------------------------------------------------------------------------------------------------
    def access(self, key: Key, record: TenantRecord) -> Access:
        return Access(self._handouts.endpoint(record), secret.tenant_secret_name(self._key.name, record.name))

    async def health(self, key: Key) -> Health:
        found = self._child(DEPLOYMENT, m.server_name(self._resource))
        owned = found if found is not None and is_owned(found, self._resource.uid) else None
        health = conditions.health(self._resource, owned, self._pods(), self._pods(m.STORE))
        return replace(health, reports=await self._reports())

    async def _reports(self) -> Reports | None:
        ready = [pod["metadata"]["name"] for pod in self._pods() if is_ready(pod)]
        if not ready:
            return {}
        if self._documents is None:
            return None
        try:
            return await self._documents.reports(ready)
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


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]
