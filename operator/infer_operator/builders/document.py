"""Resource and records -> the tenants of the desired-state document."""

from __future__ import annotations

from collections.abc import Mapping

from infer_operator.state import Resource, TenantRecord
from infer_server.contract.document import TenantEntry


def tenants(resource: Resource, records: Mapping[str, TenantRecord]) -> tuple[TenantEntry, ...]:
    """In the order of the resource. Every tenant of it has a record by now."""
    return tuple(
        TenantEntry(
            name=tenant.name,
            uid=records[tenant.name].uid,
            port=records[tenant.name].port,
            public_keys=tenant.auth.public_keys if tenant.auth else (records[tenant.name].client_public_key,),
            quota=tenant.quota,
            cache=tenant.cache,
            suspended=tenant.suspend,
        )
        for tenant in resource.deployment.spec.tenants
    )
