"""A spec in, the pods' template out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from infer_operator.builders import Context
from infer_operator.builders.deployment import CONFIG_ANNOTATION

Make = Callable[..., Any]


def test_the_restricted_standard_is_kept(make: Make) -> None:
    made = make(model={"uri": "hf://org/name", "name": "m"})
    pod = made.pod["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["containers"], *pod["initContainers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_number_of_replicas_is_ours_only_where_the_resource_says_one(make: Make) -> None:
    assert "replicas" not in make().one("Deployment")["spec"]
    assert make(replicas=0).one("Deployment")["spec"]["replicas"] == 0
    assert make(replicas=3).one("Deployment")["spec"]["replicas"] == 3


def test_tenants_change_nothing_in_the_deployment(make: Make) -> None:
    few, many = (make(tenants=[{"name": f"t{i}"} for i in range(count)]) for count in (1, 200))
    assert few.one("Deployment") == many.one("Deployment")
    assert few.one("ConfigMap") == many.one("ConfigMap")


def test_the_pod_s_configuration_changes_the_template(make: Make) -> None:
    before, same, after = make(), make(replicas=2), make(engine={"maxBatchSize": 4})
    hashes = [made.pod["metadata"]["annotations"][CONFIG_ANNOTATION] for made in (before, same, after)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_pods_listen_on_all_addresses_and_find_their_files(make: Make) -> None:
    made = make()
    pod = json.loads(made.one("ConfigMap")["data"]["pod.json"])
    assert (pod["listenHost"], pod["httpHost"], pod["namespace"], pod["deployment"]) == (
        "0.0.0.0",
        "0.0.0.0",
        "team",
        "demo",
    )
    assert made.container["args"][-1] == "/etc/inferengine/pod.json"
    mounts = {mount["name"]: mount["mountPath"] for mount in made.container["volumeMounts"]}
    mounted = {
        f"{mounts[volume['name']]}/{item['path']}"
        for volume in made.pod["spec"]["volumes"]
        for item in (volume.get("secret") or volume.get("configMap") or {}).get("items", ())
    }
    assert mounted == {
        "/etc/inferengine/pod.json",
        pod["serverKeyFile"],
        pod["namespaceKeyFile"],
        pod["storeUrlFile"],
    }


def test_a_pod_gets_only_the_secrets_that_it_reads(make: Make) -> None:
    made = make()
    assert [item["key"] for item in made.volume("keys")["secret"]["items"]] == ["server.key", "namespace.key"]
    assert [item["key"] for item in made.volume("store-url")["secret"]["items"]] == ["store.url"]
    given = make(quotaStore={"urlSecretRef": {"name": "redis", "key": "address"}}).volume("store-url")["secret"]
    assert (given["secretName"], given["items"]) == ("redis", [{"key": "address", "path": "url"}])


def test_the_grace_period_covers_the_drain(make: Make) -> None:
    assert make().pod["spec"]["terminationGracePeriodSeconds"] == 50
    made = make(drain={"seconds": 600})
    assert made.pod["spec"]["terminationGracePeriodSeconds"] == 620
    assert json.loads(made.one("ConfigMap")["data"]["pod.json"])["drainSeconds"] == 600
    assert made.container["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}


def test_probes(make: Make) -> None:
    container = make(probes={"startupSeconds": 61, "periodSeconds": 7, "failureThreshold": 4}).container
    startup, readiness, liveness = (container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 61
    assert (startup["httpGet"]["path"], liveness["httpGet"]["path"]) == ("/healthz", "/healthz")
    assert readiness["httpGet"] == {"path": "/readyz", "port": "http"}
    assert (liveness["periodSeconds"], liveness["failureThreshold"]) == (7, 4)


@pytest.mark.parametrize("uri", ["/models/m", "package://module/file.gguf"])
def test_a_model_that_is_there_is_not_fetched(make: Make, uri: str) -> None:
    made = make(model={"uri": uri, "name": "m"})
    assert "initContainers" not in made.pod["spec"]
    assert "HF_HUB_OFFLINE" not in [variable["name"] for variable in made.container["env"]]


def test_a_hub_s_model_is_fetched_before_the_server_starts(make: Make) -> None:
    secret = {"name": "hub", "key": "token"}
    model = {"uri": "hf://org/name", "name": "m", "revision": "abc", "credentialsSecretRef": secret}
    made = make(model=model)
    (fetch,) = made.pod["spec"]["initContainers"]
    assert fetch["command"] == ["inferengine", "fetch"]
    assert fetch["args"] == ["--link", "/tmp/inferengine-model", "hf://org/name@abc"]
    assert json.loads(made.one("ConfigMap")["data"]["pod.json"])["model"] == "/tmp/inferengine-model"
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}} in fetch["env"]
    shared = [mount for mount in fetch["volumeMounts"] if mount["name"] == "models"]
    assert shared == [mount for mount in made.container["volumeMounts"] if mount["name"] == "models"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in made.container["env"]
    assert "HF_TOKEN" not in str(made.container)


def test_where_the_model_is_kept(make: Make) -> None:
    assert make().volume("models") == {"name": "models", "emptyDir": {}}
    assert make(modelCache={"sizeLimit": "2048Mi"}).volume("models")["emptyDir"] == {"sizeLimit": "2Gi"}
    claim = make(modelCache={"claimName": "shared"}).volume("models")
    assert claim == {"name": "models", "persistentVolumeClaim": {"claimName": "shared"}}


def test_an_accelerator_is_asked_for_by_name(make: Make) -> None:
    made = make(
        accelerator={"resourceName": "nvidia.com/gpu"},
        resources={"requests": {"cpu": "0.5", "memory": "1024Mi"}, "limits": {"memory": "2Gi"}},
    )
    assert made.container["resources"] == {
        "requests": {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "2Gi", "nvidia.com/gpu": "1"},
    }


def test_units_of_a_shared_device_are_counted(make: Make) -> None:
    units = {"example.test/gpu-mem": "8"}
    made = make(accelerator={"resourceName": "example.test/gpu-mem", "count": 8})
    assert made.container["resources"] == {"requests": units, "limits": units}


def test_shared_memory_and_a_writable_place(make: Make) -> None:
    made = make()
    assert made.volume("shm")["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    mounts = {mount["mountPath"] for mount in made.container["volumeMounts"] if not mount.get("readOnly")}
    assert mounts == {"/dev/shm", "/tmp", "/var/cache/inferengine"}


def test_scheduling(make: Make) -> None:
    assert "tolerations" not in make().pod["spec"]
    scheduling = {
        "nodeSelector": {"gpu": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
    }
    pod = make(scheduling=scheduling).pod["spec"]
    assert {name: pod[name] for name in scheduling} == scheduling


@pytest.mark.parametrize(
    ("disruption", "update"),
    [
        ({}, {"maxSurge": 1, "maxUnavailable": 0}),
        ({"maxUnavailable": 2}, {"maxSurge": 1, "maxUnavailable": 0}),
        ({"maxSurge": 0, "maxUnavailable": 2}, {"maxSurge": 0, "maxUnavailable": 2}),
    ],
)
def test_how_a_rollout_goes(make: Make, disruption: Any, update: Any) -> None:
    assert make(disruption=disruption).one("Deployment")["spec"]["strategy"]["rollingUpdate"] == update


def test_images(make: Make) -> None:
    assert make().container["image"] == "example.test/inferengine:1"
    assert "imagePullPolicy" not in make().container
    made = make(Context(image="x", image_pull_policy="Never"), engine={"image": "own:2"})
    assert (made.container["image"], made.container["imagePullPolicy"]) == ("own:2", "Never")
    (store,) = made.one("StatefulSet", "demo-store")["spec"]["template"]["spec"]["containers"]
    assert (store["image"], store["imagePullPolicy"]) == ("own:2", "Never")


def test_a_pod_template_is_merged_and_selectors_stay(make: Make) -> None:
    template = {
        "metadata": {"labels": {"inferengine.dev/deployment": "other", "team": "a"}, "annotations": {"x": "y"}},
        "spec": {
            "containers": [
                {"name": "server", "env": [{"name": "HOME", "value": "/home"}, {"name": "A", "value": "b"}]},
                {"name": "sidecar", "image": "s", "resources": {"limits": {"memory": "1024Mi"}}},
            ],
            "volumes": [{"name": "models", "hostPath": {"path": "/models"}}],
            "hostNetwork": True,
            "securityContext": {"runAsUser": 1000},
        },
    }
    made = make(podTemplate=template)
    assert made.pod["metadata"]["labels"]["team"] == "a"
    assert made.pod["metadata"]["labels"].items() >= made.one("Deployment")["spec"]["selector"]["matchLabels"].items()
    assert {"x", CONFIG_ANNOTATION} == made.pod["metadata"]["annotations"].keys()
    server, sidecar = made.pod["spec"]["containers"]
    env = {variable["name"]: variable.get("value") for variable in server["env"]}
    assert (env["HOME"], env["A"], env["XDG_CACHE_HOME"]) == ("/home", "b", "/var/cache/inferengine")
    assert sidecar["resources"] == {"limits": {"memory": "1Gi"}}
    assert made.volume("models") == {"name": "models", "hostPath": {"path": "/models"}}
    assert made.pod["spec"]["securityContext"]["runAsUser"] == 1000
    assert made.pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert made.pod["spec"]["hostNetwork"] is True
