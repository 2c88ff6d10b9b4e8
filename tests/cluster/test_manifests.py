"""Everything that the builders make, before a real API server in a namespace that enforces the restricted Pod Security Standard.

Nothing is kept: each object is applied as a dry run. What comes back must show no difference from what was sent, or the
operator would apply it again and again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infer_operator import builders, spec
from infer_operator.backends.drift import differences
from infer_operator.builders import Context, configmap, secret, service
from infer_operator.quantity import canonical, canonical_amount
from infer_operator.reconcile import mint_tenant
from infer_operator.state import Resource

Kubectl = Callable[..., str]
DRY_RUN = ("apply", "--server-side", "--dry-run=server", "--output", "json", "--filename", "-")
CONTEXT = Context(image="example.test/inferengine:1", operator_namespace="system")

PEER = {"podSelector": {"matchLabels": {"app": "x"}}}
SPECS: dict[str, dict[str, Any]] = {
    "small": {},
    "everything": {
        "model": {
            "uri": "hf://org/name",
            "name": "m",
            "revision": "abc",
            "credentialsSecretRef": {"name": "hub", "key": "token"},
        },
        "tenants": [{"name": f"t{i}"} for i in range(5)],
        "replicas": 3,
        "resources": {"requests": {"cpu": "0.5", "memory": "1024Mi"}, "limits": {"memory": "1.5Gi", "cpu": 2}},
        "accelerator": {"resourceName": "nvidia.com/gpu"},
        "scheduling": {
            "nodeSelector": {"gpu": "a"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 1,
                            "podAffinityTerm": {
                                "topologyKey": "kubernetes.io/hostname",
                                "labelSelector": {"matchLabels": {"a": "b"}},
                            },
                        }
                    ]
                }
            },
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"a": "b"}},
                }
            ],
        },
        "podTemplate": {
            "metadata": {"annotations": {"x": "y"}},
            "spec": {
                "containers": [
                    {"name": "server", "env": [{"name": "A", "value": "b"}]},
                    {
                        "name": "sidecar",
                        "image": "s",
                        "resources": {"limits": {"memory": "1024Mi"}},
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    },
                ]
            },
        },
        "modelCache": {"sizeLimit": "20480Mi"},
        "endpoints": {
            "serviceType": "LoadBalancer",
            "annotations": {"example.test/a": "b"},
            "portRange": {"first": 21000, "last": 21099},
        },
        "quotaStore": {"embedded": {"storage": {"size": "1024Mi", "storageClassName": "fast"}}},
        "drain": {"seconds": 60},
        "disruption": {"maxSurge": 0, "maxUnavailable": 2},
        "networkPolicy": {
            "clients": [PEER],
            "scrapers": [PEER],
            "egress": [{"ports": [{"port": 8443, "protocol": "TCP"}]}],
        },
    },
    "claim and store by URL": {
        "modelCache": {"claimName": "models"},
        "quotaStore": {"urlSecretRef": {"name": "redis", "key": "url"}},
        "endpoints": {"serviceType": "NodePort"},
        "replicas": 0,
    },
    "no policies": {"networkPolicy": {"enabled": False}, "replicas": 2},
}


@pytest.fixture(scope="module")
def restricted(kubectl: Kubectl) -> Iterator[str]:
    name = f"restricted-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    given = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kubectl("create", "--filename", "-", given=given)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "demo", "namespace": name}}
    kubectl("create", "--filename", "-", given=account)  # a pod's must be there, also for a dry run
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def objects(namespace: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """All of a resource, Secrets and ledger too."""
    wanted = {"model": {"uri": "/models/m", "name": "m"}, "tenants": [{"name": "acme"}]}
    deployment = spec.convert(
        {
            "apiVersion": "inferengine.dev/v1alpha1",
            "kind": "InferenceDeployment",
            "metadata": {"name": "demo", "namespace": namespace},
            "spec": wanted | fields,
        }
    )
    resource = Resource(uid="11111111-2222-4333-8444-555555555555", generation=1, deployment=deployment)
    records = {
        tenant.name: mint_tenant(tenant.name, 20000 + index) for index, tenant in enumerate(deployment.spec.tenants)
    }
    keys = secret.mint_keys()
    return [
        *builders.objects(resource, records, CONTEXT),
        secret.keys_secret(resource, keys),
        *(
            secret.tenant_secret(resource, record, service.endpoint(resource, record), keys.server_public_key)
            for record in records.values()
        ),
        configmap.ledger_config_map(resource, configmap.Ledger(retired_ports={20007: 1.5})),
    ]


def dry_run(kubectl: Kubectl, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = json.loads(kubectl(*DRY_RUN, given={"apiVersion": "v1", "kind": "List", "items": wanted}))
    found: list[dict[str, Any]] = answer["items"] if answer["kind"] == "List" else [answer]
    return found


@pytest.mark.parametrize("fields", SPECS.values(), ids=SPECS)
def test_everything_is_accepted_and_comes_back_as_it_was_sent(
    kubectl: Kubectl, restricted: str, fields: dict[str, Any]
) -> None:
    wanted = objects(restricted, fields)
    found = dry_run(kubectl, wanted)
    assert len(found) == len(wanted)
    for observed, manifest in zip(found, wanted, strict=True):
        assert list(differences(observed, manifest)) == [], manifest["kind"]


@pytest.mark.parametrize("fields", SPECS.values(), ids=SPECS)
def test_every_pod_is_admitted_by_the_restricted_standard(
    kubectl: Kubectl, restricted: str, fields: dict[str, Any]
) -> None:
    """A Deployment is only warned about; its pods would be refused."""
    templates = [
        manifest["spec"]["template"]
        for manifest in objects(restricted, fields)
        if manifest["kind"] in ("Deployment", "StatefulSet")
    ]
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": template["metadata"] | {"name": f"pod-{index}", "namespace": restricted},
            "spec": template["spec"],
        }
        for index, template in enumerate(templates)
    ]
    assert len(dry_run(kubectl, pods)) == len(pods)


def test_quantities_are_written_as_the_server_writes_them(kubectl: Kubectl, restricted: str) -> None:
    numbers = ["0", "1", "7", "10", "100", "999", "1000", "1023", "1024", "1025", "1500", "1536", "2048", "1000000"]
    numbers += ["0.5", "1.5", "0.001", "2.25", "1024.5", "0.125", "16384"]
    suffixes = ["", "m", "k", "M", "G", "Ki", "Mi", "Gi"]
    given = [f"{number}{suffix}" for number in numbers for suffix in suffixes] + ["17179869184"]
    volumes = [{"name": f"v{index}", "emptyDir": {"sizeLimit": quantity}} for index, quantity in enumerate(given)]
    labels = {"app": "x"}
    containers = [
        {"name": f"c{index}", "image": "i", "resources": {"requests": {"cpu": quantity}}}
        for index, quantity in enumerate(given)
    ]
    pod = {"containers": containers, "volumes": volumes}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "quantities", "namespace": restricted},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }
    (found,) = dry_run(kubectl, [deployment])
    spec = found["spec"]["template"]["spec"]
    sizes = [volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"]]
    assert dict(zip(given, sizes, strict=True)) == {quantity: canonical(quantity) for quantity in given}
    amounts = [container["resources"]["requests"]["cpu"] for container in spec["containers"]]
    assert dict(zip(given, amounts, strict=True)) == {quantity: canonical_amount(quantity) for quantity in given}
