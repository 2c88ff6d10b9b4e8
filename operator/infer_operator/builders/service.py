"""A Service for each tenant, so that a client's endpoint stays while pods come and go; one for the embedded store.

A tenant's Service selects the pods that carry its slot's label: the reconciler puts the labels of each slot on the pods that
are best for it (infer_operator/endpoints.py), so a tenant stays with the pods that hold its cache.
"""

from __future__ import annotations

from infer_operator import endpoints
from infer_operator.builders import manifest as m
from infer_operator.state import Resource, TenantRecord


def tenant_service_name(deployment: str, record: TenantRecord) -> str:
    """The uid tells `a-b` + `c` from `a` + `b-c`. At most 60 characters of the 63 of a DNS label."""
    return f"{deployment}-{record.name}-{record.uid.replace('-', '')[:8]}"


def endpoint(resource: Resource, record: TenantRecord) -> str:
    """Where clients in the cluster connect."""
    name = tenant_service_name(m.server_name(resource), record)
    return f"tcp://{name}.{m.namespace(resource)}.svc:{m.TENANT_PORT}"


def tenant_service(resource: Resource, record: TenantRecord) -> m.Manifest:
    selector = m.pod_labels(resource, "server") | {slot_label(endpoints.slot_of(record.uid)): "true"}
    port = {"name": "zmq", "port": m.TENANT_PORT, "protocol": "TCP", "targetPort": record.port}
    wanted = resource.deployment.spec.endpoints
    content = {
        "type": wanted.service_type,
        "selector": selector,
        "sessionAffinity": "ClientIP",
        "ports": [port],
    }
    name = tenant_service_name(m.server_name(resource), record)
    return m.manifest(
        resource, "v1", "Service", name, {"spec": content}, tenant=record.name, annotations=wanted.annotations
    )


def store_service(resource: Resource) -> m.Manifest:
    port = {"name": "store", "port": m.STORE_PORT, "protocol": "TCP", "targetPort": m.STORE_PORT}
    content = {"type": "ClusterIP", "selector": m.pod_labels(resource, "store"), "ports": [port]}
    return m.manifest(resource, "v1", "Service", m.store_name(resource), {"spec": content}, component="store")


def slot_label(slot: int) -> str:
    return f"{m.SLOT_LABEL_PREFIX}{slot}"
