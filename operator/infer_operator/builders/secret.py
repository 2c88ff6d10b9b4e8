"""Secrets, and what is read back from them. Each is created once, its keys are never overwritten: they are nowhere else.

`<deployment>`           keys.Keys: the deployment's own keys
`<deployment>.<tenant>`  a TenantRecord: what a tenant's client needs, and in annotations the tenant's uid and port

Both are built for `create`; comparing one with its observed state tells nothing. The reconciler reads them by name. Only what a
tenant's Secret tells besides keys is kept up to date in it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from infer_operator import keys
from infer_operator.builders import manifest as m
from infer_operator.builders.credentials import client_keys
from infer_operator.state import Resource, TenantRecord

UID_ANNOTATION = f"{m.GROUP}/tenant-uid"
PORT_ANNOTATION = f"{m.GROUP}/port"
STORE_USER = "inferengine"

SERVER_KEY = "server.key"
NAMESPACE_KEY = "namespace.key"
STORE_PASSWORD = "store.password"
STORE_URL = "store.url"
STORE_ACL = "store.acl"


class SecretDamagedError(Exception):
    """A Secret of ours lacks something or holds nonsense; the message says which, and the way out."""


@dataclass(frozen=True, slots=True)
class Keys:
    """A deployment's own, made once. All of it is secret."""

    server_secret_key: str
    """CURVE, Z85"""
    namespace_key: str
    """32 bytes, hexadecimal"""
    store_password: str
    """of the embedded store; made also where it isn't used, so that a later change of the store finds it"""

    @property
    def server_public_key(self) -> str:
        return keys.curve_public(self.server_secret_key)


def mint_keys() -> Keys:
    return Keys(keys.curve_pair()[1], keys.namespace_key(), keys.password())


def tenant_secret_name(deployment: str, tenant: str) -> str:
    return f"{deployment}.{tenant}"


def keys_secret(resource: Resource, made: Keys) -> m.Manifest:
    digest = hashlib.sha256(made.store_password.encode()).hexdigest()
    data = {
        SERVER_KEY: made.server_secret_key,
        NAMESPACE_KEY: made.namespace_key,
        STORE_PASSWORD: made.store_password,
        STORE_URL: embedded_store_url(resource, made),
        STORE_ACL: _acl(digest),
    }
    return m.manifest(resource, "v1", "Secret", m.server_name(resource), {"type": "Opaque", "data": encode(data)})


def tenant_secret(resource: Resource, record: TenantRecord, endpoint: str, server_public_key: str) -> m.Manifest:
    """Its data are exactly the arguments of the Python client; without client keys where the tenant has its own."""
    data = {
        "endpoint": endpoint,
        "serverPublicKey": server_public_key,
        **client_keys(record),
    }
    return m.manifest(
        resource,
        "v1",
        "Secret",
        tenant_secret_name(m.server_name(resource), record.name),
        {"type": "Opaque", "data": encode(data)},
        tenant=record.name,
        annotations={UID_ANNOTATION: record.uid, PORT_ANNOTATION: str(record.port)},
    )


def read_keys(secret: Mapping[str, Any]) -> Keys:
    """Raises SecretDamagedError."""
    found = Keys(*(_text(secret, name) for name in (SERVER_KEY, NAMESPACE_KEY, STORE_PASSWORD)))
    try:
        keys.curve_public(found.server_secret_key)
    except ValueError as error:
        raise SecretDamagedError(
            f"Secret {_name(secret)}: {SERVER_KEY}: {error}; restore it, or delete the Secret and all clients' keys change"
        ) from error
    return found


def read_record(secret: Mapping[str, Any]) -> TenantRecord:
    """The inverse of tenant_secret. Raises SecretDamagedError."""
    metadata = secret["metadata"]
    annotations = metadata.get("annotations", {})
    try:
        return TenantRecord(
            name=metadata["labels"][m.TENANT_LABEL],
            uid=annotations[UID_ANNOTATION],
            port=int(annotations[PORT_ANNOTATION]),
            **_client_keys(secret),
        )
    except (KeyError, ValueError) as error:
        raise SecretDamagedError(
            f"Secret {_name(secret)}: label or annotation {error} is missing or wrong; restore it, or delete the Secret: "
            "then the tenant gets a new key, and its cache starts empty"
        ) from error


def readable(secret: Mapping[str, Any], names: Collection[str]) -> dict[str, str]:
    """Its entries of these names, as far as they are there and text."""
    found = {}
    for name in names:
        with contextlib.suppress(SecretDamagedError):
            found[name] = _text(secret, name)
    return found


def _client_keys(secret: Mapping[str, Any]) -> dict[str, str]:
    """A pair, or none. Raises SecretDamagedError: clients with half an edited pair would get in nowhere."""
    fields = {"client_public_key": "clientPublicKey", "client_secret_key": "clientSecretKey"}
    if not set(fields.values()) & set(secret.get("data") or {}):
        return dict.fromkeys(fields, "")
    found = {field: _text(secret, name) for field, name in fields.items()}
    try:
        is_pair = keys.curve_public(found["client_secret_key"]) == found["client_public_key"]
    except ValueError:
        is_pair = False
    if not is_pair:
        raise SecretDamagedError(
            f"Secret {_name(secret)}: clientSecretKey is not that of clientPublicKey; restore it, or delete the Secret: then the "
            "tenant gets new keys"
        )
    return found


def embedded_store_url(resource: Resource, made: Keys) -> str:
    """With its password. The host is the store's Service; who is outside of the cluster's DNS has to replace it."""
    host = f"{m.store_name(resource)}.{m.namespace(resource)}.svc"
    return f"redis://{STORE_USER}:{made.store_password}@{host}:{m.STORE_PORT}"


def _acl(password_sha256: str) -> str:
    """One user, who may touch our keys and channels, load functions, and do nothing that administers the server."""
    rights = "~inferengine:* &inferengine:* +@all -@admin -@dangerous -function|flush -function|delete -script|flush"
    return f"user default off\nuser {STORE_USER} on #{password_sha256} {rights}\n"


def encode(data: Mapping[str, str]) -> dict[str, str]:
    """As a Secret's `data`."""
    return {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}


def _text(secret: Mapping[str, Any], name: str) -> str:
    try:
        return base64.b64decode((secret.get("data") or {})[name], validate=True).decode()
    except (KeyError, binascii.Error, UnicodeDecodeError) as error:
        raise SecretDamagedError(f"Secret {_name(secret)}: {name} is missing or no text; restore it") from error


def _name(secret: Mapping[str, Any]) -> str:
    return f"{secret['metadata'].get('namespace', '')}/{secret['metadata']['name']}"
