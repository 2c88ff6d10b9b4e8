"""A Service for each tenant, so that a client's endpoint stays while pods come and go; one for the embedded store.

A tenant's Service selects the pods that carry its slot's label: the reconciler puts the labels of each slot on the pods that
are best for it (infer_operator/endpoints.py), so a tenant stays with the pods that hold its cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infer_operator import endpoints
from infer_operator.builders import manifest as m
from infer_operator.spec import EndpointsSpec
from infer_operator.state import Resource, TenantRecord


def tenant_service_name(deployment: str, record: TenantRecord) -> str:
    """The uid tells `a-b` + `c` from `a` + `b-c`. At most 60 characters of the 63 of a DNS label."""
    return f"{deployment}-{record.name}-{record.uid.replace('-', '')[:8]}"


def endpoint(resource: Resource, record: TenantRecord, observed: Mapping[str, Any] | None = None) -> str:
    """Where clients connect, as far as the tenant's Service, `observed`, tells: outside of the cluster, else within."""
    outside = _outside(resource.deployment.spec.endpoints, record.name, observed or {})
    name = tenant_service_name(m.server_name(resource), record)
    host, port = outside or (f"{name}.{m.namespace(resource)}.svc", m.TENANT_PORT)
    return f"tcp://{f'[{host}]' if ':' in host else host}:{port}"


def _outside(wanted: EndpointsSpec, tenant: str, observed: Mapping[str, Any]) -> tuple[str, int] | None:
    """Host and port; None while a part of it isn't known."""
    if observed.get("spec", {}).get("type") != wanted.service_type:
        return None
    advertised = wanted.advertised_host and wanted.advertised_host.replace("{tenant}", tenant)
    if wanted.service_type == "NodePort":
        port = next((port.get("nodePort") for port in observed["spec"].get("ports") or ()), None)
        return (advertised, port) if advertised and port else None
    if wanted.service_type == "LoadBalancer":
        address = advertised or _load_balancer(observed)
        return (address, m.TENANT_PORT) if address else None
    return None


def _load_balancer(observed: Mapping[str, Any]) -> str | None:
    """A name before an address, and one of IPv4 before one of IPv6, which clients have to be told to use."""
    ingress = (observed.get("status", {}).get("loadBalancer") or {}).get("ingress") or ()
    found = [one.get("hostname") or one.get("ip") for one in ingress]
    return min((address for address in found if address), key=lambda address: ":" in address, default=None)


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
