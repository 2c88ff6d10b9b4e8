"""The Deployment and its pods as the API server holds them in, how they are in our conditions' words out. Pure.

What can be told from outside: whether the model is being fetched or loaded, whether a rollout goes on, what keeps a pod from
running. Why an engine refuses a model is in its log alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from infer_operator.builders import manifest as m
from infer_operator.builders.model import FETCH
from infer_operator.state import Resource
from infer_operator.status import STUCK, Finding, Health, Pods, Reports
from infer_operator.troubles import Observed, condition, containers, last_words, troubles

SHOWN_PODS = 3
EXIT_MISMATCH = 3
"""of `inferengine fetch`: the model is not the one that model.digest asks for; a contract test compares it"""


def health(
    resource: Resource,
    deployment: Observed | None,
    pods: Sequence[Observed],
    store_pods: Sequence[Observed] = (),
    reports: Reports | None = None,
) -> Health:
    """`pods`: those that serve; `store_pods`: of the embedded quota store; both with ones that end.

    `reports`: of all that serve; None if they could not be read.
    """
    live, store_live = _live(pods), _live(store_pods)
    ready = [pod["metadata"]["name"] for pod in live if condition(pod, "Ready") == "True"]
    obstacles = _obstacles(live, reports or {})
    status = (deployment or {}).get("status") or {}
    wanted = ((deployment or {}).get("spec") or {}).get("replicas", 1)
    available = status.get("availableReplicas", 0)
    selector = ",".join(f"{name}={value}" for name, value in sorted(m.pod_labels(resource, "server").items()))
    reason, message = "PodsAvailable", ""
    if available < 1:
        reason = "ScaledToZero" if wanted == 0 else "NoPodAvailable"
        message = "replicas is 0" if wanted == 0 else "\n".join([f"none of {wanted} pods can serve yet", *obstacles])
    return Health(
        available=available >= 1,
        reason=reason,
        message=message,
        others={
            "ModelReady": _model(live, obstacles),
            "Progressing": _progressing(deployment, wanted, obstacles),
            "Degraded": _degraded(deployment, [*live, *store_live], obstacles),
        },
        reports=None if reports is None and ready else {name: (reports or {}).get(name) for name in ready},
        pods=Pods(status.get("replicas", 0), status.get("readyReplicas", 0), selector),
    )


def _live(pods: Sequence[Observed]) -> list[Observed]:
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def _obstacles(pods: Sequence[Observed], reports: Reports) -> list[str]:
    """What pods that are not ready say of it."""
    waiting = [pod["metadata"]["name"] for pod in pods if condition(pod, "Ready") != "True"]
    told = [(name, said.obstacles) for name in waiting if (said := reports.get(name)) is not None and said.obstacles]
    shown = [f"pod {name}: {'; '.join(obstacles)}" for name, obstacles in told[:SHOWN_PODS]]
    return [*shown, *([f"and {len(told) - SHOWN_PODS} more"] if len(told) > SHOWN_PODS else [])]


def _model(pods: Sequence[Observed], obstacles: Sequence[str]) -> Finding:
    """A pod that was ready once has loaded its model: readiness says so."""
    if any(condition(pod, "Ready") == "True" for pod in pods):
        return Finding(True, "Loaded")
    newest = _of_newest_template(pods)
    fetching = [one for pod in newest for one in containers(pod, "initContainerStatuses") if _fetches(one)]
    for container in fetching:
        ended = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated")
        if ended:
            if ended.get("exitCode") == EXIT_MISMATCH:
                return Finding(False, "DigestMismatch", last_words(ended))
            told = f"the model can't be fetched: {last_words(ended)}; the log of container {FETCH} says more"
            return Finding(False, "FetchFailed", told)
    if fetching:
        return Finding(False, "Fetching", "the model is being fetched")
    if any("running" in container.get("state", {}) for pod in pods for container in containers(pod)):
        return Finding(False, "Loading", "\n".join(["a pod loads the model", *obstacles]))
    return Finding(None, "NoPodRunning", "no pod has come so far")


def _of_newest_template(pods: Sequence[Observed]) -> list[Observed]:
    """During a rollout an older pod may still fail at what the spec no longer says."""
    if not pods:
        return []
    newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    return [pod for pod in pods if _template(pod) == _template(newest)]


def _template(pod: Observed) -> str | None:
    found: str | None = pod["metadata"].get("labels", {}).get("pod-template-hash")
    return found


def _fetches(container: Observed) -> bool:
    """Not yet done with it."""
    done = container.get("state", {}).get("terminated", {}).get("exitCode") == 0
    return container["name"] == FETCH and not done


def _progressing(deployment: Observed | None, wanted: int, obstacles: Sequence[str]) -> Finding:
    if deployment is None:
        return Finding(True, "Creating", "the Deployment is not there yet")
    status = deployment.get("status") or {}
    if condition(deployment, "Progressing", "reason") == "ProgressDeadlineExceeded":
        return Finding(False, STUCK, "the rollout doesn't get on")
    if status.get("observedGeneration") != deployment["metadata"].get("generation"):
        return Finding(True, "RollingOut", "the newest template has not been looked at yet")
    updated, all, ready = (status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas"))
    if updated < wanted or all > updated or ready < updated:
        told = f"{updated} of {wanted} pods are of the newest template, {ready} of all available"
        return Finding(True, "RollingOut", "\n".join([told, *obstacles]))
    return Finding(False, "RolledOut")


def _degraded(deployment: Observed | None, pods: Sequence[Observed], obstacles: Sequence[str]) -> Finding:
    if deployment is not None:
        failure = condition(deployment, "ReplicaFailure", "message")
        if failure is not None and condition(deployment, "ReplicaFailure") == "True":
            return Finding(True, "PodsRefused", failure)
    found = troubles(pods)
    if found:
        reason = found[0][0]
        shown = [message for _, message in found[:SHOWN_PODS]]
        rest = [f"and {len(found) - SHOWN_PODS} more"] if len(found) > SHOWN_PODS else []
        return Finding(True, reason, "\n".join(shown + rest))
    if deployment is not None and condition(deployment, "Progressing", "reason") == "ProgressDeadlineExceeded":
        told = condition(deployment, "Progressing", "message") or ""
        hint = f"{told} The pods' events and logs say why"
        return Finding(True, "ProgressDeadlineExceeded", "\n".join([hint, *obstacles]))
    return Finding(False, "AsExpected")
