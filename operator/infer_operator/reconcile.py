"""Level-triggered: observe, build, compare, apply, report. It may run at any time, any number of times, after any crash.

In flow a key and a backend; out flow the changes that were due. What a run does depends on what is there, never on what
happened, so a missed event costs a delay and a repeated one nothing.

Order, so that a crash between two changes harms nobody:
R1. Tenants' records are saved before anything names their uids, ports or keys.
R2. The objects of a tenant are there before the document opens its endpoint, and go after the document has closed it.
R3. Records go last, with their ports put into quarantine in the same change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from infer_operator import endpoints, following, keys, status
from infer_operator.backends.protocol import Backend, RefusedError
from infer_operator.builders import document as document_builder
from infer_operator.spec import TenantSpec
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
from infer_server.contract.document import DesiredState, Version
from infer_server.contract.store import RevisionConflictError, StoreUnavailableError

Mint = Callable[[str, int], TenantRecord]
Same = Callable[[str, Content | None, Content], bool]


@dataclass(frozen=True, slots=True)
class Outcome:
    changes: tuple[Change, ...]
    """what was carried out"""
    status: status.Status | None
    """None: there is no resource, or pods are just about to take over what was written: too soon to say"""
    retry: bool
    """Something is left to do that waits for the store, or for an object that was refused."""
    look_again: float | None = None
    """seconds after which pods may have reported what they have not yet"""


def mint_tenant(name: str, port: int) -> TenantRecord:
    public, secret = keys.curve_pair()
    return TenantRecord(name=name, uid=keys.uid(), port=port, client_public_key=public, client_secret_key=secret)


async def reconcile(
    key: Key, backend: Backend, mint: Mint = mint_tenant, clock: Callable[[], float] = time.time
) -> Outcome:
    """Bring the world one run nearer to the resource. Raises OSError and PortsExhaustedError: then nothing later was done."""
    observed = await backend.observe(key)
    resource = observed.resource
    if resource is None:
        return Outcome((), None, retry=False)
    records = assign(resource, observed, backend.claim_port, mint, clock())
    wanted = backend.build(key, resource, records)
    done: list[Change] = []
    refused: list[str] = []
    store_error = observed.store_error
    try:
        for change in compare(key, resource, records, wanted, observed, clock(), backend.same):
            try:
                await backend.apply(key, change)
                done.append(change)
            except RefusedError as error:  # the others need not wait for it
                refused.append(str(error))
    except (StoreUnavailableError, RevisionConflictError) as error:
        store_error = str(error)
    revision = max(
        [observed.last_revision, *(c.document.version.revision for c in done if isinstance(c, WriteDocument))]
    )
    health = await backend.health(key)
    if health.reports and any(isinstance(change, WriteDocument) for change in done):
        return Outcome(tuple(done), None, retry=bool(refused), look_again=following.FIRST_LOOK_SECONDS)
    facts = status.Facts(
        resource=resource,
        access={name: backend.access(key, record) for name, record in records.items()},
        rejected=observed.rejected,
        refused=(*observed.damaged, *refused),
        store_error=store_error,
        document_revision=revision,
        programmed=following.programmed(resource.uid, revision, health.reports, store_error),
        health=health,
    )
    reported = await report(key, backend, facts, clock())
    retry = store_error is not None or bool(refused)
    return Outcome(tuple(done), reported, retry, following.look_again(reported, clock()))


def assign(
    resource: Resource, observed: Observed, claim: Callable[[int], bool], mint: Mint, now: float
) -> dict[str, TenantRecord]:
    """Each tenant's record: the one it has, or a new one. So a uid lasts as long as the tenant is in the resource."""
    tenants = resource.deployment.spec.tenants
    names = [tenant.name for tenant in tenants]
    known = {**observed.recovered, **observed.records}
    newcomers = [name for name in names if name not in known]
    taken = [record.port for record in known.values()]
    wanted = resource.deployment.spec.endpoints.port_range
    ports = range(wanted.first, wanted.last + 1)
    given = endpoints.allocate(newcomers, taken, observed.retired_ports, claim, now, ports)
    records = {name: known.get(name) or mint(name, given[name]) for name in names}
    return {tenant.name: with_fitting_keys(records[tenant.name], tenant, mint) for tenant in tenants}


def with_fitting_keys(record: TenantRecord, tenant: TenantSpec, mint: Mint) -> TenantRecord:
    """A pair of ours is forgotten when the tenant brings keys of its own, and never comes back."""
    if tenant.auth is not None:
        return msgspec.structs.replace(record, client_public_key="", client_secret_key="")
    if record.client_public_key:
        return record
    return msgspec.structs.replace(mint(record.name, record.port), uid=record.uid)


def compare(
    key: Key,
    resource: Resource,
    records: Mapping[str, TenantRecord],
    wanted: Mapping[str, Content],
    observed: Observed,
    now: float,
    same: Same,
) -> Iterator[Change]:
    """The changes that are due, in an order that keeps R1 to R3. None where everything is as it should be."""
    unsaved = tuple(record for name, record in records.items() if observed.records.get(name) != record)
    if unsaved:
        yield SaveTenants(unsaved)
    for name, content in wanted.items():
        if not same(name, observed.objects.get(name), content):
            yield WriteObject(name, content)
    if observed.store_error is not None:
        return  # what is still to go waits until the document can be written: keeps R2
    document = next_document(key, resource, records, observed)
    if document is not None:
        expected = 0 if observed.document is None else observed.document.version.revision
        yield WriteDocument(document, expected)
    for name in sorted(observed.objects.keys() - wanted.keys()):
        yield DeleteObject(name)
    left = tuple(record for name, record in observed.records.items() if name not in records)
    if left:
        yield RemoveTenants(left, now + endpoints.QUARANTINE_SECONDS)


def next_document(
    key: Key, resource: Resource, records: Mapping[str, TenantRecord], observed: Observed
) -> DesiredState | None:
    """The document to write, None if the stored one says the same.

    Its revision is above any that was ever written: a store that lost its last writes never gets two contents under one version.
    """
    tenants = document_builder.tenants(resource, records)
    before = observed.document
    if before is not None:
        seen = before.version
        same_version = (seen.uid, seen.generation) == (resource.uid, resource.generation)
        # A store that fell back behind what pods have already seen is written again, or they would ignore it.
        if same_version and before.tenants == tenants and seen.revision >= observed.last_revision:
            return None
    revision = max(observed.last_revision, before.version.revision if before else 0) + 1
    version = Version(uid=resource.uid, generation=resource.generation, revision=revision)
    return DesiredState(version=version, namespace=key.namespace, deployment=key.name, tenants=tenants)


async def report(key: Key, backend: Backend, facts: status.Facts, now: float) -> status.Status:
    """Tell the status, if it is news."""
    before = await backend.last_status(key)
    current = status.build(facts, before, datetime.fromtimestamp(now, UTC))
    if current != before:
        await backend.report(key, current)
    return current
