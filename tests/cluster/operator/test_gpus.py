"""Pods that ask for a GPU, through the real operator and the real scheduler: on nodes that have one, or told why not."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from infer_operator.kube import POD, RESOURCE, Kind, Object

pytestmark = pytest.mark.our_cluster

NODE = Kind("Node", "v1", "nodes")
GPU = "nvidia.com/gpu"
POOL_LABEL = "inferengine.dev/test-pool"
KWOK_TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
TOLERATION = {"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}


def node(name: str, pool: str, gpus: int) -> Object:
    """One that kwok plays. Without GPUs it has far more of everything else, so that a scheduler would like it best."""
    room = {"cpu": "4" if gpus else "512", "memory": "64Gi" if gpus else "4Ti", "pods": "110"}
    room |= {GPU: str(gpus)} if gpus else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "namespace": "",
            "labels": {"kubernetes.io/hostname": name, "type": "kwok", POOL_LABEL: pool},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {"taints": [KWOK_TAINT]},
        "status": {"allocatable": room, "capacity": room},
    }


@pytest.fixture
async def pool(home: Any, until: Any) -> AsyncIterator[str]:
    """Its name: two nodes with two GPUs each, one without."""
    kube, name = home.kube, f"pool-{secrets.token_hex(4)}"
    titles = {f"{name}-gpu-0": 2, f"{name}-gpu-1": 2, f"{name}-cpu": 0}
    for title, gpus in titles.items():
        await kube.create(node(title, name, gpus), NODE)

    async def are_ready() -> bool:
        found = [await kube.read(NODE, "", title) for title in titles]
        return all(is_true(one, "Ready") and not no_schedule(one) for one in found)

    await until(are_ready, "the pool's nodes are ready")
    yield name
    for resource in (await kube.list(RESOURCE, "", home.namespace))[0]:
        await home.apply(resource["metadata"]["name"], "acme", replicas=0)

    async def is_empty() -> bool:  # pods of a node that went are cleared away a minute later only
        return not await pods(home)

    await until(is_empty, "no pod is on the pool's nodes")
    for title in titles:
        found = await kube.read(NODE, "", title)
        await kube.delete(NODE, "", title, found["metadata"]["uid"])


def no_schedule(found: Object) -> list[Object]:
    """Taints besides kwok's own: a new node is not ready for a moment, and has one that says so."""
    return [taint for taint in found["spec"].get("taints", ()) if taint["key"] != KWOK_TAINT["key"]]


def is_true(found: Object, type: str) -> bool:
    conditions = found.get("status", {}).get("conditions", ())
    return any(one["type"] == type and one["status"] == "True" for one in conditions)


async def pods(home: Any) -> list[Object]:
    return list((await home.kube.list(POD, "inferengine.dev/deployment=d", home.namespace))[0])


async def test_a_gpu_request_lands_only_on_nodes_that_have_it(
    home: Any, operator: Any, followers: None, until: Any, pool: str
) -> None:
    """Nothing but the request keeps pods from the other nodes: no selector, and the toleration lets them on all of kwok's."""
    scheduling = {"tolerations": [TOLERATION]}
    await home.apply("d", "acme", accelerator={"resourceName": GPU}, scheduling=scheduling, replicas=6)
    await home.condition("d", "Ready", "True")
    placed = {pod["spec"]["nodeName"] for pod in await pods(home)}
    assert len(await pods(home)) == 6
    for name in placed:
        found = await home.kube.read(NODE, "", name)
        assert int(found["status"]["allocatable"].get(GPU, 0)) > 0, name
        assert found["metadata"]["labels"]["type"] == "kwok"


async def test_more_replicas_than_gpus(home: Any, operator: Any, followers: None, until: Any, pool: str) -> None:
    scheduling = {"tolerations": [TOLERATION], "nodeSelector": {POOL_LABEL: pool}}
    await home.apply("d", "acme", accelerator={"resourceName": GPU}, scheduling=scheduling, replicas=6)
    told = await home.condition("d", "Ready", "False", f"Insufficient {GPU}")
    assert told["reason"] == "Unschedulable"

    async def four_run() -> list[Object] | None:
        found = await pods(home)
        running = [pod for pod in found if is_true(pod, "Ready")]
        return found if (len(found), len(running)) == (6, 4) else None

    found = await until(four_run, "four of six pods have a GPU")
    nodes = sorted(pod["spec"].get("nodeName", "") for pod in found)
    assert nodes == ["", "", *[f"{pool}-gpu-0"] * 2, *[f"{pool}-gpu-1"] * 2]
    told = await home.condition("d", "Degraded", "True", "2 pods find no node: ")
    assert told["message"].count(f"Insufficient {GPU}") == 1
    await home.condition("d", "Available", "True")  # those that run serve all tenants

    await home.apply("d", "acme", accelerator={"resourceName": GPU}, scheduling=scheduling, replicas=4)
    await home.condition("d", "Ready", "True")
