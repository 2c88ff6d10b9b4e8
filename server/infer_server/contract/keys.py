"""Names of everything that lives in the store, in one place.

A tenant's keys share the hash tag `{TenantId}`, so that one call may touch them all.
"""

from __future__ import annotations

PREFIX = "inferengine"
OPERATOR = ":operator"
"""what the key of an operator's note ends in, and no other"""


def document_key(namespace: str, deployment: str) -> str:
    return f"{PREFIX}:{{{namespace}/{deployment}}}:document"


def document_channel(namespace: str, deployment: str) -> str:
    """Pub/sub channel that announces a new revision; a follower also polls, since a message can be lost."""
    return f"{PREFIX}:{{{namespace}/{deployment}}}:changed"


def operator_key(namespace: str, deployment: str) -> str:
    """String: the id of the operator that looks after the deployment, and that may delete its keys."""
    return f"{PREFIX}:{{{namespace}/{deployment}}}{OPERATOR}"


def pod_report_key(namespace: str, deployment: str, pod: str) -> str:
    """What a pod has last said of itself. It expires: a pod that is gone says nothing."""
    return f"{PREFIX}:{{{namespace}/{deployment}}}:pod:{pod}"


def tenant_key(tenant_id: str, part: str) -> str:
    """part: limits (hash), state (hash: buckets and ledgers), leases (zset), requests (hash), settled (zset),
    audit (stream)."""
    return f"{PREFIX}:{{{tenant_id}}}:{part}"
