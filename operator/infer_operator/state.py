"""The values that flow through one reconcile: what was observed, what is to change. Frozen; no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from infer_operator.spec import InferenceDeployment
from infer_server.contract.document import DesiredState

Content = bytes | dict[str, Any]
"""of an object: a file's bytes on one machine, a manifest on a cluster"""


@dataclass(frozen=True, slots=True)
class Key:
    """Which resource."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Resource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The resource as its API server holds it; on one machine the state directory stands in for that."""

    uid: str
    """Minted when it is created; another uid is another resource, whatever its name."""
    generation: int
    """Rises with each change of the spec."""
    deployment: InferenceDeployment


class TenantRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What a tenant was given: uid and port when it first appeared, gone with the tenant; keys until it gets others. Secret."""

    name: str
    uid: str
    port: int
    client_public_key: str
    """empty, like the secret one, where the tenant has keys of its own (spec.auth)"""
    client_secret_key: str


@dataclass(frozen=True, slots=True)
class Observed:
    resource: Resource | None
    """None: it is deleted, or was never there."""
    records: Mapping[str, TenantRecord] = field(default_factory=dict)
    recovered: Mapping[str, TenantRecord] = field(default_factory=dict)
    """Tenants of whose records a part was lost, made whole with what is left and new keys: to be saved again."""
    retired_ports: Mapping[int, float] = field(default_factory=dict)
    """port of a tenant that left -> Unix time from which it may be given out again"""
    objects: Mapping[str, Content] = field(default_factory=dict)
    """name -> content, of all objects that the backend builds"""
    document: DesiredState | None = None
    last_revision: int = 0
    """The highest revision that was ever written, also where the store has lost it."""
    store_error: str | None = None
    """Why the store could not be read; then `document` says nothing."""
    damaged: tuple[str, ...] = ()
    """What was found broken or in others' hands, and the way out, a line each."""
    rejected: tuple[str, ...] = ()
    """Mistakes of the newest edit, if it was refused; `resource` is then the last good one."""


# --- changes, in the words of what they do; a backend applies each -----------------------------------------------------
@dataclass(frozen=True, slots=True)
class SaveTenants:
    records: tuple[TenantRecord, ...]
    """all that are new, at once"""


@dataclass(frozen=True, slots=True)
class RemoveTenants:
    records: tuple[TenantRecord, ...]
    port_free_at: float
    """Unix time"""


@dataclass(frozen=True, slots=True)
class WriteObject:
    name: str
    content: Content


@dataclass(frozen=True, slots=True)
class DeleteObject:
    name: str


@dataclass(frozen=True, slots=True)
class WriteDocument:
    document: DesiredState
    expected_revision: int


Change = SaveTenants | RemoveTenants | WriteObject | DeleteObject | WriteDocument
