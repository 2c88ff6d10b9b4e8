"""Pure: a resource and its tenants' records in, the objects that should exist out. One file a kind.

`objects` are kept as they are wanted: applied where they differ, deleted where they are wanted no longer. Secrets (secret.py)
are made once and kept; the document (configmap.py) goes with the store.
"""

from __future__ import annotations

from collections.abc import Mapping

from infer_operator.builders.configmap import pod_config_map
from infer_operator.builders.deployment import deployment
from infer_operator.builders.manifest import Context, Manifest
from infer_operator.builders.networkpolicy import server_policy, store_policy
from infer_operator.builders.pdb import budget
from infer_operator.builders.podmonitor import pod_monitor
from infer_operator.builders.service import tenant_service
from infer_operator.builders.serviceaccount import account
from infer_operator.builders.store import store_objects
from infer_operator.state import Resource, TenantRecord

__all__ = ["Context", "Manifest", "objects"]


def objects(resource: Resource, records: Mapping[str, TenantRecord], context: Context) -> list[Manifest]:
    """Every object but Secrets, in the order in which they are to be applied: what others refer to comes first."""
    tenants = [records[tenant.name] for tenant in resource.deployment.spec.tenants]
    optional = (
        server_policy(resource, tenants, context),
        store_policy(resource, context),
        *store_objects(resource, context),
        budget(resource),
        pod_monitor(resource, context),
    )
    return [
        account(resource),
        pod_config_map(resource),
        *(manifest for manifest in optional if manifest is not None),
        *(tenant_service(resource, record) for record in tenants),
        deployment(resource, context),
    ]
