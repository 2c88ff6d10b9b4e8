"""What a resource's status tells on a real API server: nothing before it was looked at, then what keeps its pods from running."""

from __future__ import annotations

from typing import Any

import pytest

from infer_operator.kube import RESOURCE, Object

IMAGE = "inferengine.local/no-such-image:1"


async def test_a_resource_that_nobody_looked_at_is_not_taken_for_ready(home: Any) -> None:
    """No operator runs. Tools that wait compare the two generations."""
    await home.apply("d", "acme")
    found = await home.get(RESOURCE, "d")
    assert found["metadata"]["generation"] == 1
    assert found["status"] == {"observedGeneration": -1}


@pytest.mark.our_cluster
async def test_an_image_that_is_not_there(home: Any, operator: Any, until: Any, pod_fragment: Object) -> None:
    """On a real node: a kubelet says it."""
    template = {"spec": {"containers": [{"name": "server", "imagePullPolicy": "Never"}]}}
    await home.apply(
        "d",
        "acme",
        engine={"image": IMAGE},
        podTemplate=template,
        scheduling={"nodeSelector": pod_fragment["nodeSelector"]},
    )
    for type, value in (("Degraded", "True"), ("Ready", "False")):
        told = await home.condition("d", type, value, IMAGE)
        assert told["reason"] == "ErrImageNeverPull"
        assert ", container server: " in told["message"]
        assert told["observedGeneration"] == 1
    assert home.conditions(await home.get(RESOURCE, "d"))["ModelReady"] == "Unknown"


@pytest.mark.our_cluster
async def test_a_container_that_fails_again_and_again(
    home: Any, operator: Any, until: Any, pod_fragment: Object
) -> None:
    """Its last line is told, so that nobody has to look for its log."""
    code = "import sys; sys.exit('the namespace key is no key')"
    container = pod_fragment["container"] | {
        "name": "server",
        "command": [pod_fragment["python"], "-c", code],
        "resources": {"requests": {"cpu": "10m"}},
    }
    template = {"spec": {"containers": [container], "volumes": pod_fragment["volumes"]}}
    scheduling = {"nodeSelector": pod_fragment["nodeSelector"]}
    await home.apply("d", "acme", podTemplate=template, scheduling=scheduling)
    told = await home.condition("d", "Degraded", "True", "the namespace key is no key")
    assert told["reason"] in ("Restarted", "CrashLoopBackOff")
    await home.condition("d", "Degraded", "True", "exit code 1")
    await home.apply("d", "acme", podTemplate=template, scheduling=scheduling, replicas=0)
    told = await home.condition("d", "Degraded", "False")
    assert told["reason"] == "AsExpected"
    await home.condition("d", "Available", "False", "replicas is 0")
