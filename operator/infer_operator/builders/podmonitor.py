"""How a Prometheus finds the pods' metrics: a PodMonitor, where the cluster knows that kind (of the Prometheus Operator)."""

from __future__ import annotations

from infer_operator.builders import manifest as m
from infer_operator.state import Resource


def pod_monitor(resource: Resource, context: m.Context) -> m.Manifest | None:
    wanted = resource.deployment.spec.observability
    if not context.pod_monitors or wanted.pod_monitor == "Disabled":
        return None
    # The metrics' own label `namespace` is the tenants', and the same; without honorLabels it would become exported_namespace.
    content = {
        "selector": {"matchLabels": m.pod_labels(resource, "server")},
        "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "honorLabels": True}],
    }
    made = m.manifest(resource, "monitoring.coreos.com/v1", "PodMonitor", m.server_name(resource), {"spec": content})
    made["metadata"]["labels"] = {**wanted.labels, **made["metadata"]["labels"]}
    return made
