"""This machine as a home for pods: the state directory stands in for the API server, files for objects, processes for pods.

In flow resources (`put`) and changes; out flow files, the document in the store, and what was observed of all of it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import assert_never

import msgspec

from infer_operator import keys
from infer_operator.backends.ports import Ports
from infer_operator.backends.state_dir import Ledger, StateDir, StateDirError
from infer_operator.builders.credentials import credentials, endpoint
from infer_operator.builders.pod import pod_config
from infer_operator.endpoints import QUARANTINE_SECONDS
from infer_operator.spec import InferenceDeployment
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
from infer_operator.status import Access, Health, Status
from infer_server.contract.document import DesiredState
from infer_server.contract.store import DocumentStore, StoreUnavailableError

NAMESPACE = "local"
HOST = "127.0.0.1"
POD = "pod.json"
POD_NAME = "local"


class LocalBackend:
    """One deployment in one state directory. Only the process that holds the directory's lock may use it."""

    def __init__(
        self,
        state: StateDir,
        documents: DocumentStore,
        *,
        store_url: str,
        http_port: int,
        health: Callable[[], Awaitable[Health]],
        home: Path | None = None,
    ) -> None:
        """`home`: where other deployments of this user keep their state; their ports are not given out."""
        self._state = state
        self._documents = documents
        self._store_url = store_url
        self._http_port = http_port
        self._health = health
        self._home = home
        self._server_secret = state.once("keys/server.key", keys.curve_pair()[1])
        state.once("keys/namespace.key", keys.namespace_key())
        try:
            self._server_public = keys.curve_public(self._server_secret)
        except ValueError as error:
            raise StateDirError(
                f"{state.path}/keys/server.key: {error}; restore it, or remove it and all clients' credentials change"
            ) from error
        self.ports = Ports(HOST)
        self.rejected: tuple[str, ...] = ()
        """mistakes of the newest edit of the file; written by whoever reads the file"""
        self._neighbours: set[int] = set()

    def put(self, deployment: InferenceDeployment) -> None:
        """What `kubectl apply` does on a cluster: a new generation, if the spec changed."""
        self.rejected = ()
        self._neighbours = self._ports_of_neighbours()
        before = self._state.resource()
        if before is None:
            self._state.write_as("resource.json", Resource(uid=keys.uid(), generation=1, deployment=deployment))
        elif before.deployment != deployment:
            generation = before.generation + (before.deployment.spec != deployment.spec)
            self._state.write_as(
                "resource.json", Resource(uid=before.uid, generation=generation, deployment=deployment)
            )

    async def observe(self, key: Key) -> Observed:
        ledger = self._state.ledger()
        document, store_error = await self._read_document()
        return Observed(
            resource=self._state.resource(),
            records=self.records(),
            retired_ports=ledger.retired_ports,
            objects={name: self._state.read(name) or b"" for name in self._object_names()},
            document=document,
            last_revision=ledger.last_revision,
            store_error=store_error,
            rejected=self.rejected,
        )

    def records(self) -> dict[str, TenantRecord]:
        found = (self._state.read_as(name, TenantRecord) for name in self._state.names("tenants"))
        return {record.name: record for record in found if record is not None}

    def _object_names(self) -> list[str]:
        pod = [] if self._state.read(POD) is None else [POD]
        return [*self._state.names("credentials"), *pod]

    async def _read_document(self) -> tuple[DesiredState | None, str | None]:
        try:
            return await self._documents.read(), None
        except StoreUnavailableError as error:
            return None, str(error)
        except msgspec.ValidationError as error:
            return None, f"the document in the store is not understood: {error}"

    def build(self, key: Key, resource: Resource, records: Mapping[str, TenantRecord]) -> Mapping[str, Content]:
        pod = pod_config(
            key,
            resource,
            store_url=self._store_url,
            server_key_file=str(self._state.path / "keys/server.key"),
            namespace_key_file=str(self._state.path / "keys/namespace.key"),
            pod_name=POD_NAME,
            host=HOST,
            http_port=self._http_port,
        )
        objects: dict[str, Content] = {
            _credentials_name(name): credentials(record, HOST, self._server_public) for name, record in records.items()
        }
        return objects | {POD: pod}

    def same(self, name: str, observed: Content | None, wanted: Content) -> bool:
        return observed == wanted

    def claim_port(self, port: int) -> bool:
        return port not in self._neighbours and self.ports.claim(port)

    def _ports_of_neighbours(self) -> set[int]:
        """Those of deployments that may not run just now but will again."""
        ports = set()
        for path in self._home.glob("*/tenants/[!.]*.json") if self._home else ():
            if path.parent.parent != self._state.path:
                with contextlib.suppress(OSError, StateDirError):  # theirs to repair
                    record = StateDir(path.parent).read_as(path.name, TenantRecord)
                    ports |= {record.port} if record else set()
        return ports

    async def apply(self, key: Key, change: Change) -> None:
        match change:
            case SaveTenants(records):
                for record in records:
                    self._state.write_as(_record_name(record.name), record)
            case WriteObject(name, content):
                assert isinstance(content, bytes)
                self._state.write(name, content)
            case DeleteObject(name):
                self._state.delete(name)
            case RemoveTenants(records, free_at):
                ledger = self._state.ledger()
                now = free_at - QUARANTINE_SECONDS
                still = {port: at for port, at in ledger.retired_ports.items() if at > now}
                self._save(ledger, retired_ports=still | {record.port: free_at for record in records})
                for record in records:
                    self._state.delete(_record_name(record.name))
                    self.ports.release(record.port)
            case WriteDocument(document, expected):
                # Noted first: if the answer is lost, no later document can have this revision.
                self._save(self._state.ledger(), last_revision=document.version.revision)
                await self._documents.write(document, expected)
            case _:
                assert_never(change)

    def _save(self, ledger: Ledger, **changed: object) -> None:
        self._state.write_as("ledger.json", msgspec.structs.replace(ledger, **changed))

    def access(self, key: Key, record: TenantRecord) -> Access:
        return Access(endpoint(record, HOST), str(self._state.path / _credentials_name(record.name)))

    async def health(self, key: Key) -> Health:
        health = await self._health()
        if not health.available:
            return health
        try:
            return replace(health, reports=await self._documents.reports([POD_NAME]))
        except StoreUnavailableError:
            return replace(health, reports=None)

    async def last_status(self, key: Key) -> Status | None:
        try:
            return self._state.read_as("status.json", Status)
        except StateDirError:  # it can be made anew from what is there
            return None

    async def report(self, key: Key, status: Status) -> None:
        self._state.write_as("status.json", status)


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that end do not count, listeners do
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _record_name(tenant: str) -> str:
    return f"tenants/{tenant}.json"


def _credentials_name(tenant: str) -> str:
    return f"credentials/{tenant}.json"
