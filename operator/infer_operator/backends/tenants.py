"""Tenants' records on a cluster: uid and port in the ledger (a ConfigMap), keys in the tenant's Secret; one run of one resource.

The ledger names a tenant before its Secret is made and until after it is gone. So whatever crashes, no Secret is lost from sight
and no port has two tenants; and a Secret that somebody deletes costs the tenant its keys, never its uid.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from infer_operator import keys
from infer_operator.backends.protocol import RefusedError
from infer_operator.builders import secret
from infer_operator.builders.configmap import Given, Ledger
from infer_operator.cluster import Secrets
from infer_operator.kube import Object
from infer_operator.state import Key, Resource, TenantRecord
from infer_server.contract.document import DesiredState, TenantEntry

ROTATE_ANNOTATION = "inferengine.dev/rotate."
"""and the tenant's name, on the resource: with another value the tenant gets new keys; its uid and so its cache stay"""
ROTATED_ANNOTATION = "inferengine.dev/rotated"
"""on the tenant's Secret: the value for which its keys were made"""


class Tenants:
    def __init__(
        self,
        secrets: Secrets,
        key: Key,
        resource: Resource,
        annotations: Mapping[str, str],
        ledger: Ledger,
        stored: DesiredState | None,
    ) -> None:
        """`annotations` of the resource; `stored`: the document in the store, as far as it is known."""
        self._secrets = secrets
        self._key = key
        self._resource = resource
        self._annotations = annotations
        self._given = ledger.given
        self._entries = _entries(resource, stored) or _entries(resource, ledger.document)
        self.damaged: list[str] = []
        """Secrets that can't be used as they are, a line each; filled by `read`"""

    async def read(self) -> tuple[dict[str, TenantRecord], dict[str, TenantRecord]]:
        """Records that are whole; and those that have to be saved again, parts of them made anew."""
        records: dict[str, TenantRecord] = {}
        recovered: dict[str, TenantRecord] = {}
        tenants = self._resource.deployment.spec.tenants
        wanted = [tenant.name for tenant in tenants]
        own_keys = {tenant.name for tenant in tenants if tenant.auth is not None}
        for name, given in self._given.items():
            if name not in wanted:  # it leaves: its keys no longer matter
                records[name] = _record(name, given, "", "")
                continue
            found = await self._read_secret(name)
            known = self._entries.get(name)
            if isinstance(found, TenantRecord):
                whole = (found.uid, found.port) == (given.uid, given.port)
                same = msgspec.structs.replace(found, uid=given.uid, port=given.port)
                (records if whole else recovered)[name] = same
            elif found is _UNUSABLE and name in own_keys:
                records[name] = _record(name, given, "", "")
            elif found is _UNUSABLE and known is not None and known.public_keys and not given.own_keys:
                # Ours to tell, not to mend. Another key with each run would be worse than the one that clients may have.
                records[name] = _record(name, given, known.public_keys[0], "")
            else:
                recovered[name] = _record(name, given, *keys.curve_pair())
        for name in wanted:
            if name not in self._given and (record := await self._recover(name, {**records, **recovered})) is not None:
                recovered[name] = record
        return records, recovered

    async def _recover(self, name: str, others: Mapping[str, TenantRecord]) -> TenantRecord | None:
        """Of a tenant that the ledger has lost; None: it is new."""
        found = await self._read_secret(name)
        entry = self._entries.get(name)
        if isinstance(found, TenantRecord):
            record = found
        elif entry is not None:
            record = _record(name, Given(uid=entry.uid, port=entry.port), *keys.curve_pair())
        else:
            return None
        return record if record.port not in {other.port for other in others.values()} else None

    async def _read_secret(self, name: str) -> TenantRecord | _Unusable | None:
        """None: there is none, or the tenant is to get new keys."""
        found = await self._secrets.read(self._key, self._secret_name(name))
        if found is None:
            return None
        if not is_owned(found, self._resource.uid):
            self.damaged.append(taken("Secret", found))
            return _UNUSABLE
        if self._is_to_be_rotated(found, name):
            return None
        try:
            return secret.read_record(found)
        except secret.SecretDamagedError as error:
            self.damaged.append(str(error))
            return _UNUSABLE

    def _is_to_be_rotated(self, found: Object, name: str) -> bool:
        wanted = self._annotations.get(ROTATE_ANNOTATION + name, "")
        return wanted not in ("", found["metadata"].get("annotations", {}).get(ROTATED_ANNOTATION, ""))

    async def save(self, record: TenantRecord, endpoint: str, server_public_key: str) -> None:
        """Make its Secret say what the record says. Raises RefusedError."""
        name = self._secret_name(record.name)
        found = await self._secrets.read_anew(self._key, name)
        if found is not None:
            if not is_owned(found, self._resource.uid):
                raise RefusedError(taken("Secret", found))
            if not self._is_to_be_rotated(found, record.name) and _holds(found, record):
                return
            await self._secrets.delete(self._key, name, found["metadata"]["uid"])
        manifest = secret.tenant_secret(self._resource, record, endpoint, server_public_key)
        if mark := self._annotations.get(ROTATE_ANNOTATION + record.name):
            manifest["metadata"]["annotations"][ROTATED_ANNOTATION] = mark
        await self._secrets.create(self._key, manifest)

    async def remove(self, tenant: str) -> None:
        name = self._secret_name(tenant)
        found = await self._secrets.read_anew(self._key, name)
        if found is not None and is_owned(found, self._resource.uid):
            await self._secrets.delete(self._key, name, found["metadata"]["uid"])

    def _secret_name(self, tenant: str) -> str:
        return secret.tenant_secret_name(self._key.name, tenant)


class _Unusable:
    """Another's, or damaged."""


_UNUSABLE = _Unusable()


def is_owned(found: Object, uid: str) -> bool:
    """By this very resource. One that a deleted namesake left is not."""
    return any(owner.get("uid") == uid for owner in found["metadata"].get("ownerReferences") or ())


def taken(kind: str, found: Object) -> str:
    meta = found["metadata"]
    return (
        f"{kind} {meta['namespace']}/{meta['name']} is not this resource's (uid {meta['uid']}): "
        "it is left alone; rename or delete it"
    )


def _holds(found: Object, record: TenantRecord) -> bool:
    try:
        return secret.read_record(found) == record
    except secret.SecretDamagedError:
        return False


def _record(name: str, given: Given, public: str, secret_key: str) -> TenantRecord:
    return TenantRecord(
        name=name, uid=given.uid, port=given.port, client_public_key=public, client_secret_key=secret_key
    )


def _entries(resource: Resource, document: DesiredState | None) -> dict[str, TenantEntry]:
    """Nothing of a deleted namesake's document: its tenants are others."""
    if document is None or document.version.uid != resource.uid:
        return {}
    return {entry.name: entry for entry in document.tenants}
