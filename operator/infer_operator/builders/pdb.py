"""How many pods a drained node may take away at once. None at one replica: it would only keep the node from being drained."""

from __future__ import annotations

from infer_operator.builders import manifest as m
from infer_operator.state import Resource


def budget(resource: Resource) -> m.Manifest | None:
    spec = resource.deployment.spec
    if (spec.replicas or 1) < 2:  # absent: another owns the number, perhaps an autoscaler that goes down to one
        return None
    content = {
        "maxUnavailable": spec.disruption.max_unavailable,
        "selector": {"matchLabels": m.pod_labels(resource, "server")},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    name = m.server_name(resource)
    return m.manifest(resource, "policy/v1", "PodDisruptionBudget", name, {"spec": content})
