"""The operator's memory of one resource, in a ConfigMap: read once a run, written before what it tells of is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from infer_operator import endpoints
from infer_operator.backends.applied import Applied
from infer_operator.backends.protocol import RefusedError
from infer_operator.backends.tenants import is_owned, taken
from infer_operator.builders import configmap
from infer_operator.builders.configmap import Given, Ledger
from infer_operator.kube import CONFIG_MAP
from infer_operator.state import Resource, TenantRecord
from infer_server.contract.document import DesiredState


class LedgerKeeper:
    """`read` comes first."""

    def __init__(self, objects: Applied, resource: Resource) -> None:
        self._objects = objects
        self._resource = resource
        self._name = configmap.ledger_name(resource.deployment.metadata.name)
        self.title = f"{CONFIG_MAP.name}/{self._name}"
        self.now = Ledger()
        self.damage: str | None = None
        """why it could not be read, and what becomes of it"""

    def read(self) -> None:
        """Raises RefusedError where it is another's."""
        found = self._objects.child(CONFIG_MAP, self._name)
        if found is not None and not is_owned(found, self._resource.uid):
            raise RefusedError(taken(CONFIG_MAP.name, found))
        try:
            self.now = configmap.read_ledger(found)
        except msgspec.DecodeError as error:
            namespace = self._resource.deployment.metadata.namespace
            self.damage = f"ConfigMap {namespace}/{self._name}: {error}; it is made anew from Secrets and store"

    async def give(self, records: Sequence[TenantRecord]) -> None:
        """These tenants are there from now on."""
        given = {
            record.name: Given(uid=record.uid, port=record.port, own_keys=not record.client_public_key)
            for record in records
        }
        if given != {name: self.now.given.get(name) for name in given}:
            await self._save(replace(self.now, given={**self.now.given, **given}))

    async def retire(self, records: Sequence[TenantRecord], free_at: float) -> None:
        """These are gone; their ports may be given out again from `free_at` on."""
        names = {record.name for record in records}
        now = free_at - endpoints.QUARANTINE_SECONDS
        resting = {port: at for port, at in self.now.retired_ports.items() if at > now}
        await self._save(
            replace(
                self.now,
                given={name: given for name, given in self.now.given.items() if name not in names},
                retired_ports=resting | {record.port: free_at for record in records},
            )
        )

    async def note(self, document: DesiredState) -> None:
        """That it is about to be written: if the answer is lost, no later document can have this revision."""
        await self._save(replace(self.now, document=document))

    async def _save(self, ledger: Ledger) -> None:
        """With the resourceVersion that was read: what another wrote since is not lost, the run is repeated."""
        manifest = configmap.ledger_config_map(self._resource, ledger)
        known = self._objects.child(CONFIG_MAP, self._name)
        if known is None:
            await self._objects.create(CONFIG_MAP, manifest)
        else:
            manifest["metadata"]["resourceVersion"] = known["metadata"]["resourceVersion"]
            await self._objects.apply(CONFIG_MAP, manifest)
        self.now = ledger
