"""ConfigMaps: a pod's configuration, and the operator's own memory of what it wrote to the store.

`<deployment>`           pod.json; pods read it once, at start
`<deployment>.document`  the operator's ledger: the desired-state document as last written, each tenant's uid and port, and the
                         ports that are not to be given out again yet. The store may lose its last writes; from here the
                         revision goes on where it was. A tenant that left is found by it, also after a crash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from infer_operator.builders import manifest as m
from infer_operator.builders.model import place
from infer_operator.builders.pod import pod_config
from infer_operator.state import Key, Resource
from infer_server.contract import document as contract
from infer_server.contract.document import DesiredState

POD_FILE = "pod.json"
CONFIG_DIRECTORY = "/etc/inferengine"
KEYS_DIRECTORY = "/etc/inferengine-keys"
STORE_URL_FILE = "/etc/inferengine-store/url"
ALL_ADDRESSES = "0.0.0.0"

DOCUMENT = "document.json"
TENANTS = "tenants.json"
RETIRED_PORTS = "retired-ports.json"


class Given(Struct, frozen=True, kw_only=True):
    """What a tenant was given when it first appeared, but for its keys."""

    uid: str
    port: int
    own_keys: bool = False
    """It was given none: those in the document are its own."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the operator must not forget, whatever happens to the store."""

    document: DesiredState | None = None
    given: Mapping[str, Given] = field(default_factory=dict)
    """by tenant; an entry is there before the tenant's Secret and goes after it"""
    retired_ports: Mapping[int, float] = field(default_factory=dict)
    """port of a tenant that left -> Unix time from which it may be given out again"""


def pod_json(resource: Resource) -> str:
    key = Key(m.namespace(resource), resource.deployment.metadata.name)
    return pod_config(
        key,
        resource,
        store_url_file=STORE_URL_FILE,
        server_key_file=f"{KEYS_DIRECTORY}/server.key",
        namespace_key_file=f"{KEYS_DIRECTORY}/namespace.key",
        host=ALL_ADDRESSES,
        http_port=m.HTTP_PORT,
        model_place=place(resource.deployment.spec.model),
    ).decode()


def pod_config_hash(resource: Resource) -> str:
    """Changes with what takes a restart, and only then: never with tenants."""
    return hashlib.sha256(pod_json(resource).encode()).hexdigest()[:16]


def pod_config_map(resource: Resource) -> m.Manifest:
    return m.manifest(resource, "v1", "ConfigMap", m.server_name(resource), {"data": {POD_FILE: pod_json(resource)}})


def ledger_name(deployment: str) -> str:
    return f"{deployment}.document"


def ledger_config_map(resource: Resource, ledger: Ledger) -> m.Manifest:
    data = {
        TENANTS: msgspec.json.encode(dict(sorted(ledger.given.items()))).decode(),
        RETIRED_PORTS: msgspec.json.encode(dict(sorted(ledger.retired_ports.items()))).decode(),
    }
    if ledger.document is not None:
        data[DOCUMENT] = contract.encode(ledger.document).decode()
    return m.manifest(resource, "v1", "ConfigMap", ledger_name(m.server_name(resource)), {"data": data})


def read_ledger(config_map: Mapping[str, Any] | None) -> Ledger:
    """Of the observed ConfigMap; None: there is none yet. Raises msgspec.ValidationError, naming what is wrong."""
    data = (config_map or {}).get("data") or {}
    document = contract.decode(data[DOCUMENT].encode()) if DOCUMENT in data else None
    given = msgspec.json.decode(data.get(TENANTS, "{}"), type=dict[str, Given])
    ports = msgspec.json.decode(data.get(RETIRED_PORTS, "{}"), type=dict[int, float])
    return Ledger(document, given, ports)
