"""Two statuses in, Events out: one for each condition that changed its status. Pure.

`kubectl describe` shows them. What only changes its reason or message is in the status, and makes no noise here; nor does an edit
that pods are about to take over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime

from infer_operator.following import FOLLOWING
from infer_operator.kube import EVENT, RESOURCE, Object
from infer_operator.status import Status

COMPONENT = "inferengine-operator"
MESSAGE_CHARACTERS = 1000
BAD_WHEN_TRUE = ("Degraded",)


def transitions(resource: Object, before: Status | None, after: Status) -> Iterator[Object]:
    """None for the first status: everything in it would be news."""
    known = {condition.type: condition for condition in before.conditions} if before else {}
    for condition in after.conditions:
        last = known.get(condition.type)
        if last is not None and last.status != condition.status and FOLLOWING not in (last.reason, condition.reason):
            bad = condition.status == ("True" if condition.type in BAD_WHEN_TRUE else "False")
            message = f"{condition.type} is {condition.status}: {condition.message or condition.reason}"
            yield _event(resource, "Warning" if bad else "Normal", condition.reason, message, condition.type)


def _event(resource: Object, type: str, reason: str, message: str, subject: str) -> Object:
    meta = resource["metadata"]
    now = datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    digest = hashlib.sha256(f"{meta['uid']}/{subject}/{now.timestamp()}".encode()).hexdigest()[:16]
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": f"{meta['name']}.{digest}", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": RESOURCE.api_version,
            "kind": RESOURCE.name,
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"],
        },
        "type": type,
        "reason": reason,
        "message": message[:MESSAGE_CHARACTERS],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
