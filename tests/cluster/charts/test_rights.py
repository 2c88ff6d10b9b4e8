"""The operator does all that it can do, under the API server's audit: the rights it used are those that the chart gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.our_cluster

CHILD_KINDS = {
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "Service": "v1",
    "ConfigMap": "v1",
    "ServiceAccount": "v1",
    "PersistentVolumeClaim": "v1",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
}
LABELS = {"matchLabels": {"app": "old"}}
OLD_POD = {"metadata": {"labels": {"app": "old"}}, "spec": {"containers": [{"name": "old", "image": "old.test/x"}]}}
OLD_SPECS: dict[str, Any] = {
    "Deployment": {"spec": {"replicas": 0, "selector": LABELS, "template": OLD_POD}},
    "StatefulSet": {"spec": {"replicas": 0, "selector": LABELS, "template": OLD_POD}},
    "Service": {"spec": {"ports": [{"port": 1}]}},
    "PersistentVolumeClaim": {
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    },
    "NetworkPolicy": {"spec": {"podSelector": LABELS}},
    "PodDisruptionBudget": {"spec": {"selector": LABELS}},
    "PodMonitor": {"spec": {"selector": LABELS, "podMetricsEndpoints": []}},
}

Manifest = dict[str, Any]
Right = tuple[str, str, str]
"""API group, resource (with its subresource), verb"""


def granted(manifest: str) -> set[Right]:
    """To the operator: there are roles for people too, which nothing binds."""
    made = [item for item in yaml.safe_load_all(manifest) if item]
    bound = {item["roleRef"]["name"] for item in made if item["kind"] in ("RoleBinding", "ClusterRoleBinding")}
    roles = [item for item in made if item["kind"] in ("Role", "ClusterRole") and item["metadata"]["name"] in bound]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def rights(event: Manifest) -> Iterator[Right]:
    """What a request needed. An apply that makes an object needs `create` besides `patch`."""
    at = event["objectRef"]
    resource = "/".join(filter(None, (at["resource"], at.get("subresource"))))
    yield at.get("apiGroup", ""), resource, event["verb"]
    if event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201:
        yield at.get("apiGroup", ""), resource, "create"


def test_rights_used_are_rights_granted(
    release: Any,
    pod_monitors: None,
    kubectl: Callable[..., str],
    until: Callable[..., Any],
    on_kwok: Manifest,
    audited: Callable[[str], list[Manifest]],
    refused: Callable[[str], list[Manifest]],
) -> None:
    manifest = release.install()
    outside = {"urlSecretRef": {"name": "quota-store", "key": "url"}}
    spec = release.real_spec({"scheduling": on_kwok, "replicas": 2, "tenants": [{"name": "acme"}, {"name": "globex"}]})
    release.apply("all", spec | {"quotaStore": {"embedded": {"storage": {"size": "1Gi"}}}})
    wanted = set(CHILD_KINDS)
    until(lambda: wanted <= {kind for kind, _ in release.children("all", "podmonitor")}, "an object of each kind")
    release.apply("all", spec | {"quotaStore": outside})
    until(lambda: release.condition("all", "QuotaStoreReachable") == "True", "another store answers")
    until(lambda: release.condition("all", "Available") == "True", "pods are available")
    until(
        lambda: not {"StatefulSet"} & {kind for kind, _ in release.children("all", "podmonitor")},
        "the embedded store is gone",
    )

    ported = {"serviceType": "NodePort", "advertisedHost": "nodes.example.test"}
    release.apply("all", spec | {"quotaStore": outside, "endpoints": ported})
    until(lambda: "nodes.example.test" in release.secret("all.acme")["endpoint"], "a Secret names the nodes")
    release.apply("all", spec | {"quotaStore": outside, "tenants": [{"name": "acme"}]})
    until(lambda: release.get("secret", "all.globex") is None, "a tenant's Secret is gone")
    resource = release.get("infd", "all")
    for kind in CHILD_KINDS:
        kubectl("create", "-f", "-", given=left_by_an_older_version(kind, resource))
    until(
        lambda: not any(name == "old" for _, name in release.children("all", "podmonitor")),
        "what is wanted no longer is pruned",
    )
    kubectl("delete", "infd/all", "-n", release.namespace, "--timeout=90s")

    user = f"system:serviceaccount:{release.namespace}:inferengine-operator"
    used = {right for event in audited(user) for right in rights(event)}
    assert refused(user) == []
    assert used == granted(manifest)


def left_by_an_older_version(kind: str, resource: Manifest) -> Manifest:
    """Ours by owner and label, and not what this version would make."""
    meta = resource["metadata"]
    owner = {key: resource[key] for key in ("apiVersion", "kind")} | {key: meta[key] for key in ("name", "uid")}
    return {
        "apiVersion": CHILD_KINDS[kind],
        "kind": kind,
        "metadata": {
            "name": "old",
            "namespace": meta["namespace"],
            "labels": {"inferengine.dev/deployment": meta["name"]},
            "ownerReferences": [owner],
        },
        **OLD_SPECS.get(kind, {}),
    }
