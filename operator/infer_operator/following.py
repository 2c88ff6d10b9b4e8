"""What ready pods reported in, whether the tenants are programmed out: whether every pod serves the newest document. Pure.

A pod that is not ready gets no clients, so it does not count: it takes the document over before it becomes ready.
"""

from __future__ import annotations

from datetime import datetime

from infer_operator.status import Finding, Reports, Status
from infer_server.contract.report import PodReport

SHOWN_PODS = 3
FIRST_LOOK_SECONDS = 0.25
"""Pods take a document over some milliseconds after it was written."""
LAST_LOOK_SECONDS = 15.0
FOLLOWING, NOT_REPORTED = "Following", "NotReported"


def programmed(uid: str, revision: int, reports: Reports | None, store_error: str | None) -> Finding:
    """`revision`: of the document in the store. `reports`: None if they could not be read."""
    if store_error is not None or reports is None:
        return Finding(None, "NoAnswer", "the quota store does not tell which tenants are served")
    if not reports:
        return Finding(True, "Programmed", f"revision {revision} is in the quota store; no pod is ready")
    late = {pod: said for pod, said in reports.items() if said is None or not said.follows(uid, revision)}
    if not late:
        return Finding(True, "Programmed")
    shown = [_told(pod, said, uid) for pod, said in sorted(late.items())[:SHOWN_PODS]]
    rest = [f"and {len(late) - SHOWN_PODS} more"] if len(late) > SHOWN_PODS else []
    count = f"{len(reports) - len(late)} of {len(reports)} pods follow revision {revision}"
    message = "\n".join([count, *shown, *rest])
    silent = all(said is None for said in late.values())
    return Finding(None, NOT_REPORTED, message) if silent else Finding(False, FOLLOWING, message)


def _told(pod: str, said: PodReport | None, uid: str) -> str:
    if said is None:
        return f"pod {pod} has reported nothing lately"
    version = said.version
    seen = "no revision yet" if version is None or version.uid != uid else f"revision {version.revision}"
    return f"pod {pod} has {'; '.join([seen, *said.obstacles])}"


def look_again(status: Status, now: float) -> float | None:
    """After how many seconds to read the reports again; None: no need to. The longer it lasts, the less often."""
    condition = status.condition("TenantsProgrammed")
    if condition.reason not in (FOLLOWING, NOT_REPORTED):
        return None
    lasted = now - datetime.fromisoformat(condition.last_transition_time).timestamp()
    return min(LAST_LOOK_SECONDS, max(FIRST_LOOK_SECONDS, lasted / 2))
