"""The Deployment and its pods as the API server holds them in, how they are in our conditions' words out. Pure.

What can be told from outside: whether the model is being fetched or loaded, whether a rollout goes on, what keeps a pod from
running. Why an engine refuses a model is in its log alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infer_operator.builders import manifest as m
from infer_operator.builders.model import FETCH
from infer_operator.state import Resource
from infer_operator.status import Finding, Health, Pods

Observed = Mapping[str, Any]

SHOWN_PODS = 3
TROUBLE = (
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
)
"""reasons of waiting containers that don't pass by themselves"""
EXIT_MISMATCH = 3
"""of `inferengine fetch`: the model is not the one that model.digest asks for; a contract test compares it"""
PREEMPTION = re.compile(r"\s*(no new claims to deallocate, )?preemption: .*", re.DOTALL)
"""what the scheduler's message goes on with: why it drives no other pod away, which helps nobody here"""
UNSCHEDULABLE_HINT = "Add nodes that have what a pod asks for, or lower replicas, resources or what scheduling demands."


def health(resource: Resource, deployment: Observed | None, pods: Sequence[Observed]) -> Health:
    """`pods`: those that serve, also ones that end."""
    live = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    status = (deployment or {}).get("status") or {}
    wanted = ((deployment or {}).get("spec") or {}).get("replicas", 1)
    available = status.get("availableReplicas", 0)
    selector = ",".join(f"{name}={value}" for name, value in sorted(m.pod_labels(resource, "server").items()))
    reason, message = "PodsAvailable", ""
    if available < 1:
        reason = "ScaledToZero" if wanted == 0 else "NoPodAvailable"
        message = "replicas is 0" if wanted == 0 else f"none of {wanted} pods can serve yet"
    return Health(
        available=available >= 1,
        reason=reason,
        message=message,
        others={
            "ModelReady": _model(live),
            "Progressing": _progressing(deployment, wanted),
            "Degraded": _degraded(deployment, live),
        },
        pods=Pods(status.get("replicas", 0), status.get("readyReplicas", 0), selector),
    )


def _model(pods: Sequence[Observed]) -> Finding:
    """A pod that was ready once has loaded its model: readiness says so."""
    if any(_condition(pod, "Ready") == "True" for pod in pods):
        return Finding(True, "Loaded")
    fetching = [
        container for pod in pods for container in _containers(pod, "initContainerStatuses") if _fetches(container)
    ]
    for container in fetching:
        ended = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated")
        if ended:
            if ended.get("exitCode") == EXIT_MISMATCH:
                return Finding(False, "DigestMismatch", _last_words(ended))
            told = f"the model can't be fetched: {_last_words(ended)}; the log of container {FETCH} says more"
            return Finding(False, "FetchFailed", told)
    if fetching:
        return Finding(False, "Fetching", "the model is being fetched")
    if any("running" in container.get("state", {}) for pod in pods for container in _containers(pod)):
        return Finding(False, "Loading", "a pod loads the model; if that lasts, its log says why")
    return Finding(None, "NoPodRunning", "no pod has come so far")


def _last_words(ended: Observed) -> str:
    """Of `inferengine fetch`: the last line of its log."""
    lines = (ended.get("message") or "").strip().splitlines() or [f"exit code {ended.get('exitCode')}"]
    return str(lines[-1]).removeprefix("inferengine fetch: ")


def _fetches(container: Observed) -> bool:
    """Not yet done with it."""
    done = container.get("state", {}).get("terminated", {}).get("exitCode") == 0
    return container["name"] == FETCH and not done


def _progressing(deployment: Observed | None, wanted: int) -> Finding:
    if deployment is None:
        return Finding(True, "Creating", "the Deployment is not there yet")
    status = deployment.get("status") or {}
    if _condition(deployment, "Progressing", "reason") == "ProgressDeadlineExceeded":
        return Finding(False, "Stuck", "the rollout doesn't get on")
    if status.get("observedGeneration") != deployment["metadata"].get("generation"):
        return Finding(True, "RollingOut", "the newest template has not been looked at yet")
    updated, all, ready = (status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas"))
    if updated < wanted or all > updated or ready < updated:
        return Finding(
            True, "RollingOut", f"{updated} of {wanted} pods are of the newest template, {ready} of all available"
        )
    return Finding(False, "RolledOut")


def _degraded(deployment: Observed | None, pods: Sequence[Observed]) -> Finding:
    if deployment is not None:
        failure = _condition(deployment, "ReplicaFailure", "message")
        if failure is not None and _condition(deployment, "ReplicaFailure") == "True":
            return Finding(True, "PodsRefused", failure)
    troubles = [*_unscheduled(pods), *(trouble for pod in pods for trouble in _troubles(pod))]
    if troubles:
        reason = troubles[0][0]
        shown = [message for _, message in troubles[:SHOWN_PODS]]
        rest = [f"and {len(troubles) - SHOWN_PODS} more"] if len(troubles) > SHOWN_PODS else []
        return Finding(True, reason, "\n".join(shown + rest))
    if deployment is not None and _condition(deployment, "Progressing", "reason") == "ProgressDeadlineExceeded":
        told = _condition(deployment, "Progressing", "message") or ""
        return Finding(True, "ProgressDeadlineExceeded", f"{told} The pods' events and logs say why")
    return Finding(False, "AsExpected")


def _unscheduled(pods: Sequence[Observed]) -> Iterator[tuple[str, str]]:
    """(reason, message) for those that find no node. The scheduler says the same of all of one template: once is enough."""
    names: dict[str, list[str]] = {}
    for pod in pods:
        if _condition(pod, "PodScheduled", "reason") == "Unschedulable":
            told = PREEMPTION.sub("", _condition(pod, "PodScheduled", "message") or "")
            names.setdefault(told, []).append(pod["metadata"]["name"])
    for told, waiting in names.items():
        who = f"pod {waiting[0]} finds" if len(waiting) == 1 else f"{len(waiting)} pods find"
        yield "Unschedulable", f"{who} no node: {told} {UNSCHEDULABLE_HINT}"


def _troubles(pod: Observed) -> Iterator[tuple[str, str]]:
    """(reason, message) of what keeps its containers from running."""
    name = pod["metadata"]["name"]
    for container in (*_containers(pod, "initContainerStatuses"), *_containers(pod)):
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in TROUBLE:
            told = waiting.get("message") or waiting["reason"]
            ended = container.get("lastState", {}).get("terminated")
            if ended and container["name"] == FETCH:
                told = f"{_last_words(ended)} ({told})"
            yield waiting["reason"], f"pod {name}, container {container['name']}: {told}"


def _containers(pod: Observed, field: str = "containerStatuses") -> list[Observed]:
    return (pod.get("status") or {}).get(field) or []


def _condition(thing: Observed, type: str, field: str = "status") -> str | None:
    conditions = (thing.get("status") or {}).get("conditions") or ()
    return next((condition.get(field) for condition in conditions if condition["type"] == type), None)
