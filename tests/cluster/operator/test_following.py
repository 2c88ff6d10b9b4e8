"""Tenants are programmed when every ready pod says so; the operator notices by itself, and `kubectl wait` means what it says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infer_operator.kube import POD, Object

pytestmark = pytest.mark.our_cluster

ON_KWOK = {
    "nodeSelector": {"type": "kwok"},
    "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}],
}
"""Pods there are ready at once, and run nothing."""


async def ready_pods(home: Any, until: Any, number: int) -> list[Object]:
    async def look() -> list[Object] | None:
        found = (await home.kube.list(POD, "inferengine.dev/deployment=d", home.namespace))[0]
        ready = [pod for pod in found if any(one["type"] == "Ready" and one["status"] == "True" for one in told(pod))]
        return ready if len(ready) == number else None

    pods: list[Object] = await until(look, f"{number} ready pods")
    return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))


def told(pod: Object) -> list[Object]:
    return list(pod.get("status", {}).get("conditions", ()))


async def test_an_edit_is_programmed_once_each_ready_pod_follows(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme", replicas=3, scheduling=ON_KWOK)
    pods = await ready_pods(home, until, 3)
    names = [pod["metadata"]["name"] for pod in pods]
    found = await home.condition("d", "TenantsProgrammed", "Unknown", "0 of 3 pods follow revision 1")
    assert all(f"pod {name} has reported nothing lately" in found["message"] for name in names)
    for pod in pods:
        home.report(pod, home.document("d"))
    await home.condition("d", "TenantsProgrammed", "True")
    await home.condition("d", "Ready", "True")

    await home.apply("d", "acme", "globex", replicas=3, scheduling=ON_KWOK)
    found = await home.condition("d", "TenantsProgrammed", "False", "0 of 3 pods follow revision 2")
    assert found["observedGeneration"] == 2
    assert f"pod {names[0]} has revision 1" in found["message"]
    for pod in pods[:2]:
        home.report(pod, home.document("d"))
    await home.condition("d", "TenantsProgrammed", "False", "2 of 3 pods follow revision 2")
    await home.condition("d", "Ready", "False", f"pod {names[2]} has revision 1")
    home.report(pods[2], home.document("d"))
    await home.condition("d", "Ready", "True")


async def test_kubectl_waits_for_the_pods(home: Any, operator: Any, followers: None, until: Any) -> None:
    """Right after an edit the old status still says True; what it was observed of tells that it is old."""
    await home.apply("d", "acme", replicas=1, scheduling=ON_KWOK)
    (pod,) = await ready_pods(home, until, 1)
    await home.condition("d", "Ready", "True")
    for number in range(5):
        await home.apply("d", "acme", f"t{number}", replicas=1, scheduling=ON_KWOK)
        assert await wait(home, "TenantsProgrammed") == 0
        revision = home.document("d").version.revision
        assert f"t{number}" in home.entries("d")
        assert home.reported(pod).follows(home.document("d").version.uid, revision)
        assert await wait(home, "Ready") == 0


async def wait(home: Any, condition: str) -> int:
    command = ("wait", "infd/d", f"--for=condition={condition}", "--timeout=60s", "-n", home.namespace)
    process = await asyncio.create_subprocess_exec("kubectl", *command, stdout=asyncio.subprocess.DEVNULL)
    return await process.wait()
