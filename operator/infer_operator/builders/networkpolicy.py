"""NetworkPolicies: what may reach the pods, and what they may reach. Everything else is closed, both ways.

Probes come from the node itself, which no policy keeps out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infer_operator.builders import manifest as m
from infer_operator.builders import model, store
from infer_operator.state import Resource, TenantRecord

EVERY_NAMESPACE: dict[str, Any] = {"namespaceSelector": {}}
OPERATOR_LABELS = {"app.kubernetes.io/name": m.MANAGER}
"""of the operator's pods"""


def server_policy(resource: Resource, tenants: Sequence[TenantRecord], context: m.Context) -> m.Manifest | None:
    spec = resource.deployment.spec
    wanted = spec.network_policy
    if not wanted.enabled:
        return None
    clients = _rule("from", list(wanted.clients), _tenant_ports(resource, tenants))
    scrapers = _rule("from", list(wanted.scrapers) or [EVERY_NAMESPACE], [_port(m.HTTP_PORT)])
    return _policy(resource, "server", m.server_name(resource), [clients, scrapers], _server_egress(resource, context))


def store_policy(resource: Resource, context: m.Context) -> m.Manifest | None:
    if not resource.deployment.spec.network_policy.enabled or not store.is_embedded(resource):
        return None
    peers: list[dict[str, Any]] = [{"podSelector": {"matchLabels": m.pod_labels(resource, "server")}}]
    if context.operator_namespace is None:  # it may come from anywhere; the store has a password
        peers = []
    else:
        peers.append(
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": context.operator_namespace}},
                "podSelector": {"matchLabels": OPERATOR_LABELS},
            }
        )
    return _policy(resource, "store", m.store_dotted_name(resource), [_rule("from", peers, [_port(m.STORE_PORT)])], [])


def _server_egress(resource: Resource, context: m.Context) -> list[dict[str, Any]]:
    spec = resource.deployment.spec
    dns = {"ports": [_port(53, protocol="UDP"), _port(53)]}
    if store.is_embedded(resource):
        peer = {"podSelector": {"matchLabels": m.pod_labels(resource, "store")}}
        to_store = _rule("to", [peer], [_port(m.STORE_PORT)])
    else:  # wherever the name in its URL leads
        to_store = _rule("to", [], [_port(context.store_port)])
    to_model = [_rule("to", [], [_port(port)]) for port in model.ports(spec.model)]
    return [dns, to_store, *to_model, *spec.network_policy.egress]


def _tenant_ports(resource: Resource, tenants: Sequence[TenantRecord]) -> list[dict[str, Any]]:
    """The whole range, so that a new tenant changes no policy; and the ports that tenants have from an earlier range."""
    ports = resource.deployment.spec.endpoints.port_range
    outside = sorted(record.port for record in tenants if not ports.first <= record.port <= ports.last)
    whole = _port(ports.first) | ({"endPort": ports.last} if ports.last > ports.first else {})
    return [whole, *map(_port, outside)]


def _port(number: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"port": number, "protocol": protocol}


def _rule(direction: str, peers: list[Any], ports: list[dict[str, Any]]) -> dict[str, Any]:
    """No peers: anywhere. An empty list would be dropped by the API server, and would mean the same."""
    return {"ports": ports} | ({direction: peers} if peers else {})


def _policy(
    resource: Resource, component: m.Component, name: str, ingress: list[dict[str, Any]], egress: list[dict[str, Any]]
) -> m.Manifest:
    content = {
        "podSelector": {"matchLabels": m.pod_labels(resource, component)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
    } | ({"egress": egress} if egress else {})
    return m.manifest(resource, "networking.k8s.io/v1", "NetworkPolicy", name, {"spec": content}, component=component)
