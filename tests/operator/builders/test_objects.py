"""A spec and records in, every object but the Deployment out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from infer_operator.builders import Context, service
from infer_operator.endpoints import slot_of

Make = Callable[..., Any]
KINDS = ["ServiceAccount", "ConfigMap", "NetworkPolicy", "Service", "StatefulSet", "Deployment"]


def test_what_there_is_and_in_which_order(make: Make) -> None:
    """What others refer to comes first, the pods last."""
    kinds = [manifest["kind"] for manifest in make().objects]
    assert list(dict.fromkeys(kinds)) == KINDS
    assert len(kinds) == 9
    assert kinds[-1] == "Deployment"


def test_every_object_says_whose_it_is(make: Make) -> None:
    owner = {
        "apiVersion": "inferengine.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "name": "demo",
        "uid": "0b7c-owner",
        "controller": True,
    }
    for manifest in make(replicas=2, quotaStore={"embedded": {"storage": {"size": "1Gi"}}}).objects:
        metadata = manifest["metadata"]
        assert manifest["apiVersion"]
        assert metadata["namespace"] == "team"
        assert metadata["ownerReferences"] == [owner]
        assert metadata["labels"]["inferengine.dev/deployment"] == "demo"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "inferengine-operator"


def test_no_two_objects_of_a_kind_have_one_name(make: Make) -> None:
    """Not even those of deployments whose names look alike."""
    seen: set[tuple[str, str]] = set()
    for made in (make(name=name, tenants=[{"name": "store"}, {"name": "b"}]) for name in ("a", "a-store", "a-b")):
        for manifest in made.objects:
            slot = (manifest["kind"], manifest["metadata"]["name"])
            assert slot not in seen
            seen.add(slot)


def test_the_same_arguments_give_the_same_objects(make: Make) -> None:
    assert make().objects == make().objects
    json.dumps(make().objects)


def test_a_tenant_s_service(make: Make) -> None:
    made = make(endpoints={"serviceType": "LoadBalancer", "annotations": {"cloud": "internal"}})
    service = made.one("Service", "demo-acme-00004e20")
    assert service["metadata"]["labels"]["inferengine.dev/tenant"] == "acme"
    assert service["metadata"]["annotations"] == {"cloud": "internal"}
    slot = slot_of(made.records["acme"].uid)
    assert service["spec"] == {
        "type": "LoadBalancer",
        "selector": {
            "inferengine.dev/deployment": "demo",
            "app.kubernetes.io/component": "server",
            f"slots.inferengine.dev/{slot}": "true",
        },
        "sessionAffinity": "ClientIP",
        "ports": [{"name": "zmq", "port": 5555, "protocol": "TCP", "targetPort": 20000}],
    }


def service_as(type: str, **status: Any) -> Any:
    return {"spec": {"type": type, "ports": [{"port": 5555, "nodePort": 31555}]}, "status": {"loadBalancer": status}}


WITHIN = "tcp://demo-acme-00004e20.team.svc:5555"


@pytest.mark.parametrize(
    ("wanted", "observed", "endpoint"),
    [
        ({}, service_as("ClusterIP"), WITHIN),
        ({"serviceType": "NodePort"}, service_as("NodePort"), WITHIN),  # which of the nodes?
        ({"serviceType": "NodePort", "advertisedHost": "llm.test"}, None, WITHIN),
        ({"serviceType": "NodePort", "advertisedHost": "llm.test"}, service_as("ClusterIP"), WITHIN),
        ({"serviceType": "NodePort", "advertisedHost": "llm.test"}, service_as("NodePort"), "tcp://llm.test:31555"),
        ({"serviceType": "NodePort", "advertisedHost": "{tenant}.x"}, service_as("NodePort"), "tcp://acme.x:31555"),
        ({"serviceType": "LoadBalancer"}, service_as("LoadBalancer"), WITHIN),
        (
            {"serviceType": "LoadBalancer"},
            service_as("LoadBalancer", ingress=[{"ip": "9.8.7.6"}]),
            "tcp://9.8.7.6:5555",
        ),
        (
            {"serviceType": "LoadBalancer"},
            service_as("LoadBalancer", ingress=[{"ip": "fd00::1"}, {"ip": "9.8.7.6", "hostname": "lb.test"}]),
            "tcp://lb.test:5555",
        ),
        (
            {"serviceType": "LoadBalancer"},
            service_as("LoadBalancer", ingress=[{"ip": "fd00::1"}]),
            "tcp://[fd00::1]:5555",
        ),
        (
            {"serviceType": "LoadBalancer", "advertisedHost": "{tenant}.llm.test"},
            service_as("LoadBalancer"),
            "tcp://acme.llm.test:5555",
        ),
    ],
)
def test_where_clients_connect(make: Make, wanted: Any, observed: Any, endpoint: str) -> None:
    made = make(endpoints=wanted)
    assert service.endpoint(made.resource, made.records["acme"], observed) == endpoint


def test_the_longest_names_fit(make: Make) -> None:
    made = make(name="d" * 25, tenants=[{"name": "t" * 25}])
    assert max(len(manifest["metadata"]["name"]) for manifest in made.all("Service")) == 60


@pytest.mark.parametrize("replicas", [{}, {"replicas": 0}, {"replicas": 1}])
def test_no_disruption_budget_at_one_replica(make: Make, replicas: Any) -> None:
    assert make(**replicas).all("PodDisruptionBudget") == []


def test_a_disruption_budget_at_two(make: Make) -> None:
    budget = make(replicas=2).one("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == make(replicas=2).one("Deployment")["spec"]["selector"]


def test_the_service_account_has_no_token(make: Make) -> None:
    assert make().one("ServiceAccount")["automountServiceAccountToken"] is False


def test_a_pod_monitor_where_the_cluster_knows_that_kind(make: Make) -> None:
    assert make().all("PodMonitor") == []
    knows = Context(image="x", pod_monitors=True)
    assert make(knows, observability={"podMonitor": "Disabled"}).all("PodMonitor") == []
    made = make(knows, observability={"labels": {"release": "prometheus", "inferengine.dev/deployment": "other"}})
    monitor = made.one("PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["metadata"]["labels"]["inferengine.dev/deployment"] == "demo"
    assert monitor["spec"]["selector"] == made.one("Deployment")["spec"]["selector"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "http", "path": "/metrics", "honorLabels": True}
    assert endpoint["port"] in [port["name"] for port in made.container["ports"]]


# --- network policies ---------------------------------------------------------------------------------------------------
def test_everything_is_closed_but_what_is_needed(make: Make) -> None:
    policy = make().one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [
        {"ports": [{"port": 20000, "protocol": "TCP", "endPort": 20999}]},
        {"ports": [{"port": 9400, "protocol": "TCP"}], "from": [{"namespaceSelector": {}}]},
    ]
    dns, store = policy["egress"]
    assert dns == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    assert store["ports"] == [{"port": 6379, "protocol": "TCP"}]
    assert store["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "store"


def test_the_policy_follows_the_spec(make: Make) -> None:
    peer = {"podSelector": {"matchLabels": {"app": "x"}}}
    extra = {"ports": [{"port": 8443, "protocol": "TCP"}]}
    made = make(
        model={"uri": "hf://org/name", "name": "m"},
        endpoints={"portRange": {"first": 20001, "last": 20001 + 100}},
        networkPolicy={"clients": [peer], "scrapers": [peer], "egress": [extra]},
    )
    policy = made.one("NetworkPolicy")["spec"]
    clients, scrapers = policy["ingress"]
    assert clients["ports"] == [
        {"port": 20001, "protocol": "TCP", "endPort": 20101},
        {"port": 20000, "protocol": "TCP"},  # of a tenant from an earlier range
    ]
    assert (clients["from"], scrapers["from"]) == ([peer], [peer])
    assert {"ports": [{"port": 443, "protocol": "TCP"}]} in policy["egress"]
    assert policy["egress"][-1] == extra


def test_no_policies_where_they_are_not_wanted(make: Make) -> None:
    assert make(networkPolicy={"enabled": False}).all("NetworkPolicy") == []


def test_who_may_connect_to_the_store(make: Make) -> None:
    outside = make().one("NetworkPolicy", "demo.store")["spec"]
    assert outside["ingress"] == [{"ports": [{"port": 6379, "protocol": "TCP"}]}]
    assert "egress" not in outside
    inside = make(Context(image="x", operator_namespace="system")).one("NetworkPolicy", "demo.store")["spec"]
    pods, operator = inside["ingress"][0]["from"]
    assert pods["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "system"}


# --- quota store --------------------------------------------------------------------------------------------------------
def test_a_store_by_url_is_not_ours_to_run(make: Make) -> None:
    made = make(Context(image="x", store_port=7000), quotaStore={"urlSecretRef": {"name": "s", "key": "k"}})
    assert made.all("StatefulSet") == []
    assert [manifest["metadata"]["name"] for manifest in made.all("NetworkPolicy")] == ["demo"]
    assert not any(manifest["metadata"]["name"] == "demo-store" for manifest in made.all("Service"))
    assert {"ports": [{"port": 7000, "protocol": "TCP"}]} in made.one("NetworkPolicy")["spec"]["egress"]


def test_the_embedded_store_keeps_its_data_where_it_is_told(make: Make) -> None:
    def data(made: Any) -> Any:
        volumes = made.one("StatefulSet", "demo-store")["spec"]["template"]["spec"]["volumes"]
        return next(volume for volume in volumes if volume["name"] == "data")

    assert data(make()) == {"name": "data", "emptyDir": {}}
    storage = {"size": "1024Mi", "storageClassName": "fast"}
    made = make(quotaStore={"embedded": {"storage": storage}})
    assert data(made)["persistentVolumeClaim"] == {"claimName": "demo.store"}
    assert made.one("PersistentVolumeClaim", "demo.store")["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "fast",
    }


def test_no_password_is_in_any_object(make: Make) -> None:
    """They are in Secrets, and pods mount those."""
    text = json.dumps(make().objects)
    assert "redis://" not in text
    assert "password" not in text
    assert "s" * 40 not in text
