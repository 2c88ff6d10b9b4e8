"""A Deployment and its pods as an API server shows them in, conditions out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from infer_operator import conditions, spec, status, troubles
from infer_operator.state import Resource
from infer_server.contract.report import PodReport

RESOURCE = Resource(
    uid="u",
    generation=4,
    deployment=spec.convert(
        {
            "apiVersion": "inferengine.dev/v1alpha1",
            "kind": "InferenceDeployment",
            "metadata": {"name": "d", "namespace": "team"},
            "spec": {"model": {"uri": "/m", "name": "m"}, "tenants": [{"name": "acme"}]},
        }
    ),
)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def deployment(wanted: int = 2, *, seen: int = 1, conditions: Any = (), **counts: int) -> dict[str, Any]:
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), wanted) | counts
    return {
        "metadata": {"generation": 1},
        "spec": {"replicas": wanted},
        "status": {"observedGeneration": seen, "conditions": list(conditions), **counts},
    }


def pod(name: str = "p", *, ready: bool = False, **fields: Any) -> dict[str, Any]:
    found = [{"type": "Ready", "status": str(ready)}, *fields.pop("conditions", ())]
    return {"metadata": {"name": name}, "status": {"conditions": found, **fields}}


def container(name: str = "server", **state: Any) -> dict[str, Any]:
    return {"name": name, "state": state}


def others(found: Any, *pods: Any) -> dict[str, tuple[bool | None, str]]:
    health = conditions.health(RESOURCE, found, pods)
    return {type: (finding.holds, finding.reason) for type, finding in health.others.items()}


def test_all_is_well() -> None:
    health = conditions.health(RESOURCE, deployment(), [pod(ready=True), pod(ready=True)])
    assert (health.available, health.reason, health.message) == (True, "PodsAvailable", "")
    assert {type: finding.holds for type, finding in health.others.items()} == {
        "ModelReady": True,
        "Progressing": False,
        "Degraded": False,
    }
    assert health.pods == status.Pods(2, 2, "app.kubernetes.io/component=server,inferengine.dev/deployment=d")


def test_nothing_is_there_yet() -> None:
    health = conditions.health(RESOURCE, None, [])
    assert (health.available, health.reason) == (False, "NoPodAvailable")
    assert others(None) == {
        "ModelReady": (None, "NoPodRunning"),
        "Progressing": (True, "Creating"),
        "Degraded": (False, "AsExpected"),
    }


def test_scaled_to_zero() -> None:
    health = conditions.health(RESOURCE, deployment(0), [])
    assert (health.available, health.reason) == (False, "ScaledToZero")
    assert health.others["Progressing"].holds is False


def test_one_pod_that_serves_is_enough_to_be_available() -> None:
    found = deployment(3, readyReplicas=1, availableReplicas=1)
    health = conditions.health(RESOURCE, found, [pod(ready=True), pod(), pod()])
    assert health.available
    assert health.others["Progressing"].reason == "RollingOut"


@pytest.mark.parametrize(
    "found",
    [
        deployment(seen=0),
        deployment(updatedReplicas=1),
        deployment(replicas=3),
        deployment(availableReplicas=1),
    ],
)
def test_a_rollout(found: Any) -> None:
    assert others(found, pod(ready=True))["Progressing"] == (True, "RollingOut")


def test_a_rollout_that_does_not_get_on() -> None:
    stuck = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out."}
    told = others(deployment(availableReplicas=0, conditions=[stuck]), pod())
    assert told["Progressing"] == (False, "Stuck")
    assert told["Degraded"] == (True, "ProgressDeadlineExceeded")


FETCHING = container("fetch", running={})
FETCHED = container("fetch", terminated={"exitCode": 0})
FAILED = container("fetch", terminated={"exitCode": 1, "message": "no such model"})
AGAIN = container("fetch", waiting={"reason": "PodInitializing"}) | {"lastState": {"terminated": {"exitCode": 1}}}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, (None, "NoPodRunning")),
        ({"initContainerStatuses": [FETCHING]}, (False, "Fetching")),
        ({"initContainerStatuses": [FAILED]}, (False, "FetchFailed")),
        ({"initContainerStatuses": [AGAIN]}, (False, "FetchFailed")),
        ({"initContainerStatuses": [FETCHED], "containerStatuses": [container(running={})]}, (False, "Loading")),
        ({"containerStatuses": [container(running={})], "ready": True}, (True, "Loaded")),
    ],
)
def test_the_model(fields: dict[str, Any], told: tuple[bool | None, str]) -> None:
    assert others(deployment(), pod(**fields))["ModelReady"] == told


def test_a_failed_fetch_says_why() -> None:
    health = conditions.health(RESOURCE, deployment(), [pod(initContainerStatuses=[FAILED])])
    assert "no such model" in health.others["ModelReady"].message


WRONG = "fetching 1 files\ninferengine fetch: s3://b/m: its digest is sha256:1, model.digest asks for sha256:2\n"


def test_another_model_than_was_asked_for() -> None:
    ended = {"exitCode": conditions.EXIT_MISMATCH, "message": WRONG}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 10s"}
    again = container("fetch", waiting=waiting) | {"lastState": {"terminated": ended}}
    health = conditions.health(RESOURCE, deployment(availableReplicas=0), [pod(initContainerStatuses=[again])])
    found = health.others["ModelReady"]
    assert (found.holds, found.reason) == (False, "DigestMismatch")
    assert found.message == "s3://b/m: its digest is sha256:1, model.digest asks for sha256:2"
    assert found.message in health.others["Degraded"].message  # Ready says the same


def test_pods_of_the_newest_template_speak_of_the_model() -> None:
    def of(template: str, second: int, status: Any) -> dict[str, Any]:
        made = pod(f"p{second}", initContainerStatuses=[status])
        created = {"creationTimestamp": f"2026-01-01T00:00:0{second}Z", "labels": {"pod-template-hash": template}}
        return made | {"metadata": made["metadata"] | created}

    old, new = of("a", 1, FAILED), of("b", 2, FETCHING)
    for pods in ([old, new], [new, old]):
        assert others(deployment(), *pods)["ModelReady"] == (False, "Fetching")
    assert others(deployment(), old, new, of("b", 3, FETCHING), of("b", 2, FAILED))["ModelReady"] == (
        False,
        "FetchFailed",
    )


def test_pods_that_end_do_not_count() -> None:
    leaving = pod(containerStatuses=[container(waiting={"reason": "CrashLoopBackOff"})])
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert others(deployment(), pod(ready=True), leaving)["Degraded"] == (False, "AsExpected")


def test_what_keeps_pods_from_running() -> None:
    crash = [container(waiting={"reason": "CrashLoopBackOff", "message": "back-off 10s"})]
    pods = [pod(f"p{i}", containerStatuses=crash) for i in range(5)]
    finding = conditions.health(RESOURCE, deployment(), pods).others["Degraded"]
    assert (finding.holds, finding.reason) == (True, "CrashLoopBackOff")
    assert finding.message.splitlines() == [
        *(f"pod p{i}, container server: back-off 10s" for i in range(3)),
        "and 2 more",
    ]


CRASH = {"reason": "CrashLoopBackOff", "message": "back-off 10s"}
ERROR = {"reason": "Error", "exitCode": 2, "message": "starting\nERROR gateway: the namespace key is no key\n"}
OUT_OF_MEMORY = {"reason": "OOMKilled", "exitCode": 137}


@pytest.mark.parametrize(
    ("state", "ended", "ready", "reason", "told"),
    [
        ({"waiting": CRASH}, None, False, "CrashLoopBackOff", "back-off 10s"),
        (
            {"waiting": CRASH},
            ERROR,
            False,
            "CrashLoopBackOff",
            "it ended with exit code 2: ERROR gateway: the namespace key is no key (back-off 10s)",
        ),
        (
            {"waiting": CRASH},
            {"reason": "Error", "exitCode": 137},
            False,
            "CrashLoopBackOff",
            "it ended with exit code 137: its log says why (back-off 10s)",
        ),
        ({"waiting": CRASH}, OUT_OF_MEMORY, False, "OOMKilled", f"{troubles.OUT_OF_MEMORY_HINT} (back-off 10s)"),
        ({"running": {}}, OUT_OF_MEMORY, False, "OOMKilled", troubles.OUT_OF_MEMORY_HINT),
        ({"terminated": OUT_OF_MEMORY}, None, False, "OOMKilled", troubles.OUT_OF_MEMORY_HINT),
        (
            {"running": {}},
            ERROR,
            False,
            "Restarted",
            "it ended with exit code 2: ERROR gateway: the namespace key is no key",
        ),
        ({"running": {}}, ERROR, True, "AsExpected", ""),  # it has got over it
        ({"running": {}}, {"reason": "Completed", "exitCode": 0}, False, "AsExpected", ""),
        (
            {"waiting": {"reason": "ErrImageNeverPull", "message": "image x is not present"}},
            None,
            False,
            "ErrImageNeverPull",
            "image x is not present",
        ),
        ({"waiting": {"reason": "ContainerCreating"}}, None, False, "AsExpected", ""),
    ],
)
def test_how_a_container_ended(state: Any, ended: Any, ready: bool, reason: str, told: str) -> None:
    last = {} if ended is None else {"lastState": {"terminated": ended}}
    found = container(**state) | last | {"ready": ready}
    finding = conditions.health(RESOURCE, deployment(), [pod(containerStatuses=[found])]).others["Degraded"]
    assert (finding.holds, finding.reason) == (reason != "AsExpected", reason)
    assert finding.message == (f"pod p, container server: {told}" if told else "")


def test_the_store_s_own_pod() -> None:
    image = container("store", waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    store = pod("d-store-0", containerStatuses=[image])
    health = conditions.health(RESOURCE, deployment(), [pod(ready=True)], [store])
    finding = health.others["Degraded"]
    assert (finding.reason, finding.message) == (
        "ImagePullBackOff",
        "pod d-store-0, container store: no such image",
    )
    assert health.others["ModelReady"].holds


def test_no_node_and_no_permission() -> None:
    told = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    preemption = " no new claims to deallocate, preemption: 0/3 nodes are available: 3 No preemption victims found."
    lonely = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": told + preemption}
    pods = [pod(name, conditions=[lonely]) for name in "pqr"]
    finding = conditions.health(RESOURCE, deployment(), pods[:1]).others["Degraded"]
    message = f"pod p finds no node: {told} {troubles.UNSCHEDULABLE_HINT}"
    assert (finding.reason, finding.message) == ("Unschedulable", message)
    finding = conditions.health(RESOURCE, deployment(), pods).others["Degraded"]
    assert finding.message == f"3 pods find no node: {told} {troubles.UNSCHEDULABLE_HINT}"
    refused = {"type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity"}
    finding = conditions.health(RESOURCE, deployment(conditions=[refused]), []).others["Degraded"]
    assert (finding.reason, finding.message) == ("PodsRefused", "violates PodSecurity")


SAID = {
    "p": PodReport(obstacles=("the model is not loaded",)),
    "q": PodReport(obstacles=("endpoint of team/d/acme: can't listen on 20003", "draining")),
    "r": PodReport(),
    "ready": PodReport(obstacles=("draining",)),
}


def test_pods_that_are_not_ready_say_why() -> None:
    pods = [pod("p"), pod("q"), pod("r"), pod("silent")]
    told = ["pod p: the model is not loaded", "pod q: endpoint of team/d/acme: can't listen on 20003; draining"]
    health = conditions.health(RESOURCE, deployment(4, availableReplicas=0), pods, (), SAID)
    assert health.message.splitlines() == ["none of 4 pods can serve yet", *told]
    assert health.reports == {}
    some = conditions.health(RESOURCE, deployment(5, availableReplicas=1), [*pods, pod("ready", ready=True)], (), SAID)
    assert some.available
    assert some.others["Progressing"].message.splitlines()[1:] == told
    assert some.reports == {"ready": SAID["ready"]}
    stuck = deployment(
        4, availableReplicas=0, conditions=[{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]
    )
    assert conditions.health(RESOURCE, stuck, pods, (), SAID).others["Degraded"].message.splitlines()[1:] == told


def test_reports_that_could_not_be_read() -> None:
    assert conditions.health(RESOURCE, deployment(), [pod("p")], (), None).reports == {}
    assert conditions.health(RESOURCE, deployment(), [pod("p", ready=True)], (), None).reports is None
    assert conditions.health(RESOURCE, deployment(), [pod("p", ready=True)], (), {}).reports == {"p": None}


# --- the whole status -----------------------------------------------------------------------------------------------------
def build(health: status.Health, **changed: Any) -> status.Status:
    facts = {
        "resource": RESOURCE,
        "access": {"acme": status.Access("tcp://x:5555", "d.acme")},
        "rejected": (),
        "refused": (),
        "store_error": None,
        "document_revision": 7,
        "programmed": status.Finding(True, "Programmed"),
        "health": health,
    }
    return status.build(status.Facts(**(facts | changed)), None, NOW)


WELL = conditions.health(RESOURCE, deployment(), [pod(ready=True)])


def test_ready_when_all_is_well() -> None:
    told = build(WELL)
    assert told.ready
    assert [condition.type for condition in told.conditions] == [
        "Accepted",
        "QuotaStoreReachable",
        "TenantsProgrammed",
        "Available",
        "ModelReady",
        "Progressing",
        "Degraded",
        "Ready",
    ]
    assert (told.replicas, told.ready_replicas, told.tenant_count) == (2, 2, 1)


def test_what_is_on_its_way_is_not_ready() -> None:
    told = build(conditions.health(RESOURCE, deployment(seen=0), [pod(ready=True)]))
    assert told.condition("Available").status == "True"
    assert (told.condition("Ready").status, told.condition("Ready").reason) == ("False", "RollingOut")


def test_what_is_degraded_explains_more_than_what_it_leads_to() -> None:
    crashed = [pod(containerStatuses=[container(waiting={"reason": "ImagePullBackOff"})])]
    told = build(conditions.health(RESOURCE, deployment(availableReplicas=0), crashed))
    assert told.condition("Available").status == "False"
    assert told.condition("Ready").reason == "ImagePullBackOff"


def test_refused_objects_are_told() -> None:
    told = build(WELL, refused=("Service team/x is another's", "Secret team/y is damaged"))
    degraded = told.condition("Degraded")
    assert (degraded.status, degraded.reason) == ("True", "ObjectsRefused")
    assert degraded.message == "Service team/x is another's\nSecret team/y is damaged"
    assert not told.ready


def test_long_messages_are_cut() -> None:
    told = build(WELL, refused=tuple(f"Service team/x{i} is another's" for i in range(500)))
    assert len(told.condition("Degraded").message) == status.MESSAGE_CHARACTERS


# --- what tools wait for ----------------------------------------------------------------------------------------------------
def kstatus(resource: dict[str, Any]) -> str:
    """For a kind that it does not know: cli-utils, pkg/kstatus/status/status.go (Compute) and generic.go."""
    found = resource.get("status", {})
    generation = found.get("observedGeneration")
    if generation is not None and generation != resource["metadata"]["generation"]:
        return "InProgress"
    values = {one["type"]: one["status"] for one in found.get("conditions", ())}
    if values.get("Stalled") == "True":
        return "Failed"
    if values.get("Reconciling") == "True":
        return "InProgress"
    return "InProgress" if values.get("Ready", "True") != "True" else "Current"


STUCK = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out."}
LONELY = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}


@pytest.mark.parametrize(
    ("health", "changed", "told"),
    [
        (WELL, {}, "Current"),
        (conditions.health(RESOURCE, None, []), {}, "InProgress"),
        (conditions.health(RESOURCE, deployment(seen=0), [pod(ready=True)]), {}, "InProgress"),
        (conditions.health(RESOURCE, deployment(availableReplicas=0), [pod(conditions=[LONELY])]), {}, "InProgress"),
        (conditions.health(RESOURCE, deployment(availableReplicas=0, conditions=[STUCK]), [pod()]), {}, "Failed"),
        (WELL, {"store_error": "no answer"}, "InProgress"),
        (WELL, {"programmed": status.Finding(False, "Following")}, "InProgress"),
        (WELL, {"refused": ("Service team/x is another's",)}, "Failed"),
    ],
)
def test_what_tools_that_know_kstatus_see(health: status.Health, changed: Any, told: str) -> None:
    body = msgspec.to_builtins(build(health, **changed))
    assert kstatus({"metadata": {"generation": 4}, "status": body}) == told
    assert kstatus({"metadata": {"generation": 5}, "status": body}) == "InProgress"
    assert all(one["observedGeneration"] == 4 for one in body["conditions"])


def test_a_stalled_resource_says_why() -> None:
    health = conditions.health(
        RESOURCE, deployment(availableReplicas=0, conditions=[STUCK]), [pod(conditions=[LONELY])]
    )
    told = build(health).condition("Stalled")
    assert (told.status, told.reason) == ("True", "Unschedulable")
    assert "0/3 nodes" in told.message


def test_one_machine_tells_of_no_stall() -> None:
    told = build(status.Health(True, "PodReady"), refused=("x",))
    assert "Stalled" not in {one.type for one in told.conditions}
