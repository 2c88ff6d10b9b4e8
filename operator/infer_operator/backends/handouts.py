"""What tenants' clients need, kept right in their Secrets on a cluster: endpoints change, keys do not. One run of one resource.

A Secret is made once with its keys (tenants.py); from then on only what its client is told besides is written into it, so that no
crash between two requests can lose a key.
"""

from __future__ import annotations

from collections.abc import Mapping

from infer_operator.backends.protocol import RefusedError
from infer_operator.backends.tenants import is_owned, taken
from infer_operator.builders import manifest as m
from infer_operator.builders import secret, service
from infer_operator.builders.credentials import client_keys
from infer_operator.cluster import Cluster
from infer_operator.kube import REFUSALS, ApiError
from infer_operator.state import Content, Key, Resource, TenantRecord

KEPT_RIGHT = ("endpoint", "serverPublicKey")
PREFIX = "Secret/"
"""of the names under which the reconciler compares them"""


class Handouts:
    def __init__(self, cluster: Cluster, key: Key, resource: Resource) -> None:
        self._cluster = cluster
        self._key = key
        self._resource = resource
        self._found: dict[str, Content] = {}
        """Secrets of ours by tenant: what is in them"""

    async def observe(self) -> dict[str, Content]:
        """Of tenants that stay. One that is missing, or another's, is not here: tenants.py makes it, or tells."""
        for tenant in self._resource.deployment.spec.tenants:
            found = await self._cluster.secrets.read(self._key, self._name(tenant.name))
            if found is not None and is_owned(found, self._resource.uid):
                self._found[tenant.name] = secret.readable(found, KEPT_RIGHT)
        return {PREFIX + self._name(tenant): content for tenant, content in self._found.items()}

    def contents(self, records: Mapping[str, TenantRecord], server_public_key: str) -> dict[str, dict[str, str]]:
        """By tenant what its Secret should hold; without those whose secret keys are in a Secret that can't be read."""
        return {
            tenant: {
                "endpoint": self.endpoint(record),
                "serverPublicKey": server_public_key,
                **client_keys(record),
            }
            for tenant, record in records.items()
            if bool(record.client_public_key) == bool(record.client_secret_key)
        }

    def build(self, contents: Mapping[str, Mapping[str, str]]) -> dict[str, Content]:
        """`contents` as above. Of Secrets that are there already; those that can't be read stay as they are."""
        return {
            PREFIX + self._name(tenant): {name: contents[tenant][name] for name in KEPT_RIGHT}
            if tenant in contents
            else found
            for tenant, found in self._found.items()
        }

    def endpoint(self, record: TenantRecord) -> str:
        """Where the tenant connects, as far as its Service tells by now."""
        name = service.tenant_service_name(m.server_name(self._resource), record)
        seen = self._cluster.store.children(self._key).get(("Service", name))
        return service.endpoint(self._resource, record, seen if seen and is_owned(seen, self._resource.uid) else None)

    async def write(self, title: str, content: Mapping[str, str]) -> None:
        """Raises RefusedError."""
        name = title.removeprefix(PREFIX)
        found = await self._cluster.secrets.read(self._key, name)
        if found is None or not is_owned(found, self._resource.uid):
            raise RefusedError(taken("Secret", found) if found else f"Secret {self._key.namespace}/{name}: gone again")
        if secret.readable(found, KEPT_RIGHT) == content:  # made anew in this very run
            return
        try:
            await self._cluster.secrets.patch(self._key, found, secret.encode(content))
        except ApiError as error:
            if error.status in REFUSALS:
                raise RefusedError(f"Secret {self._key.namespace}/{name}: {error.message}") from error
            raise

    def _name(self, tenant: str) -> str:
        return secret.tenant_secret_name(self._key.name, tenant)
