"""Pods as the API server holds them in, what keeps them from running out: each as a word for programs and a line for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infer_operator.builders.model import FETCH

Observed = Mapping[str, Any]
Trouble = tuple[str, str]
"""reason, message"""

WAITING = (
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
OUT_OF_MEMORY = "OOMKilled"
OUT_OF_MEMORY_HINT = "it wanted more memory than its limit: raise resources.limits.memory, or lower what it holds"
PREEMPTION = re.compile(r"\s*(no new claims to deallocate, )?preemption: .*", re.DOTALL)
"""what the scheduler's message goes on with: why it drives no other pod away, which helps nobody here"""
UNSCHEDULABLE_HINT = "Add nodes that have what a pod asks for, or lower replicas, resources or what scheduling demands."


def troubles(pods: Sequence[Observed]) -> list[Trouble]:
    return [*_unscheduled(pods), *(trouble for pod in pods for trouble in _of_containers(pod))]


def containers(pod: Observed, field: str = "containerStatuses") -> list[Observed]:
    return (pod.get("status") or {}).get(field) or []


def condition(thing: Observed, type: str, field: str = "status") -> str | None:
    conditions = (thing.get("status") or {}).get("conditions") or ()
    return next((condition.get(field) for condition in conditions if condition["type"] == type), None)


def last_words(ended: Observed) -> str:
    """Of `inferengine fetch`: the last line of its log."""
    lines = (ended.get("message") or "").strip().splitlines() or [f"exit code {ended.get('exitCode')}"]
    return str(lines[-1]).removeprefix("inferengine fetch: ")


def _unscheduled(pods: Sequence[Observed]) -> Iterator[Trouble]:
    """Those that find no node. The scheduler says the same of all of one template: once is enough."""
    names: dict[str, list[str]] = {}
    for pod in pods:
        if condition(pod, "PodScheduled", "reason") == "Unschedulable":
            told = PREEMPTION.sub("", condition(pod, "PodScheduled", "message") or "")
            names.setdefault(told, []).append(pod["metadata"]["name"])
    for told, waiting in names.items():
        who = f"pod {waiting[0]} finds" if len(waiting) == 1 else f"{len(waiting)} pods find"
        yield "Unschedulable", f"{who} no node: {told} {UNSCHEDULABLE_HINT}"


def _of_containers(pod: Observed) -> Iterator[Trouble]:
    for container in (*containers(pod, "initContainerStatuses"), *containers(pod)):
        found = _of_container(container)
        if found is not None:
            reason, told = found
            yield reason, f"pod {pod['metadata']['name']}, container {container['name']}: {told}"


def _of_container(container: Observed) -> Trouble | None:
    """Also of one that runs again after it has failed: until it is ready, it is as likely to fail once more."""
    state = container.get("state", {})
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or container.get("lastState", {}).get("terminated") or {}
    if waiting.get("reason") in WAITING:
        told = waiting.get("message") or waiting["reason"]
        if not ended:
            return waiting["reason"], told
        return _word(ended, waiting["reason"]), f"{_ending(container, ended)} ({told})"
    if ended.get("exitCode") and not container.get("ready") and container["name"] != FETCH:
        return _word(ended, "Restarted"), _ending(container, ended)
    return None


def _word(ended: Observed, otherwise: str) -> str:
    return OUT_OF_MEMORY if ended.get("reason") == OUT_OF_MEMORY else otherwise


def _ending(container: Observed, ended: Observed) -> str:
    if container["name"] == FETCH:
        return last_words(ended)
    if ended.get("reason") == OUT_OF_MEMORY:
        return OUT_OF_MEMORY_HINT
    lines = (ended.get("message") or "").strip().splitlines()
    return f"it ended with exit code {ended.get('exitCode')}: {lines[-1] if lines else 'its log says why'}"
