"""What was observed in, the status that people and tools read out. Pure.

Conditions follow the conventions of Kubernetes: type, status, reason, message, and the time of the last change of status.
Ready sums up the others: it is True when all of them hold, nothing is degraded and nothing is on its way. Stalled is there only
where no waiting helps, and then True. With observedGeneration these two are all that a tool that knows kstatus needs
(https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus).

A cluster's status has no field that this machine's alone has, and the other way round; UNSET ones are not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from msgspec import UNSET, Struct, UnsetType

from infer_operator.state import Resource
from infer_server.contract.document import QuotaLimits
from infer_server.contract.report import PodReport

MESSAGE_CHARACTERS = 2048
"""of a condition: lists in it are cut there"""
BAD_WHEN_TRUE = ("Degraded", "Progressing")
"""conditions of which Ready wants the opposite"""
STUCK, OBJECTS_REFUSED = "Stuck", "ObjectsRefused"
"""reasons of Progressing and Degraded that don't pass by themselves"""


Reports = Mapping[str, PodReport | None]
"""pod -> what it said last; None: nothing lately"""


class Condition(Struct, frozen=True, kw_only=True, rename="camel"):
    type: str
    status: str
    """True, False or Unknown"""
    reason: str
    message: str = ""
    observed_generation: int
    last_transition_time: str


class TenantStatus(Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    endpoint: str
    credentials: str
    """where they are: a file on one machine, a Secret on a cluster"""
    suspended: bool = False
    quota: QuotaLimits | UnsetType = UNSET
    """on one machine, for `inferengine status`"""


class Status(Struct, frozen=True, kw_only=True, rename="camel"):
    observed_generation: int
    document_revision: int
    conditions: tuple[Condition, ...]
    tenants: tuple[TenantStatus, ...]
    tenant_count: int
    processes: dict[str, int] | UnsetType = UNSET
    """on one machine: name -> process id, of those that run"""
    metrics_url: str | UnsetType = UNSET
    """on one machine"""
    replicas: int | UnsetType = UNSET
    """on a cluster: pods that there are"""
    ready_replicas: int | UnsetType = UNSET
    """on a cluster: pods that can serve every tenant"""
    selector: str | UnsetType = UNSET
    """on a cluster: of the pods, for autoscalers"""

    def condition(self, type: str) -> Condition:
        return next(condition for condition in self.conditions if condition.type == type)

    @property
    def ready(self) -> bool:
        return self.condition("Ready").status == "True"


@dataclass(frozen=True, slots=True)
class Access:
    """Where a tenant's clients connect, and where what they need for it is kept."""

    endpoint: str
    credentials: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a condition says."""

    holds: bool | None
    """None: it can't be known"""
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Pods:
    """Of a cluster."""

    replicas: int
    ready: int
    selector: str


@dataclass(frozen=True, slots=True)
class Health:
    """How the pods are, as far as a backend can tell from outside."""

    available: bool
    reason: str
    message: str = ""
    processes: Mapping[str, int] = field(default_factory=dict)
    metrics_url: str | None = None
    others: Mapping[str, Finding] = field(default_factory=dict)
    """ModelReady, Progressing, Degraded: type -> finding, where the backend can tell"""
    pods: Pods | None = None
    """None on one machine"""
    reports: Reports | None = field(default_factory=dict)
    """of the pods that are ready; None: the store did not tell"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a status is made of."""

    resource: Resource
    access: Mapping[str, Access]
    """by tenant"""
    rejected: tuple[str, ...]
    refused: tuple[str, ...]
    """objects that could not be made as wanted, and what was found damaged, a line each"""
    store_error: str | None
    document_revision: int
    programmed: Finding
    """of TenantsProgrammed"""
    health: Health


def build(facts: Facts, before: Status | None, now: datetime) -> Status:
    """The new status; a condition whose status did not change keeps its time."""
    generation = facts.resource.generation
    known = {condition.type: condition for condition in before.conditions} if before else {}
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def condition(type: str, finding: Finding) -> Condition:
        status = "Unknown" if finding.holds is None else str(finding.holds)
        last = known.get(type)
        since = last.last_transition_time if last is not None and last.status == status else stamp
        return Condition(
            type=type,
            status=status,
            reason=finding.reason,
            message=_shortened(finding.message),
            observed_generation=generation,
            last_transition_time=since,
        )

    findings = _findings(facts)
    findings["Ready"] = _ready(findings)
    pods, local = facts.health.pods, facts.health.pods is None
    if not local and (stalled := _stalled(findings)) is not None:
        findings["Stalled"] = stalled
    return Status(
        observed_generation=generation,
        document_revision=facts.document_revision,
        conditions=tuple(condition(type, finding) for type, finding in findings.items()),
        tenants=_tenants(facts, with_quota=local),
        tenant_count=len(facts.resource.deployment.spec.tenants),
        processes=dict(facts.health.processes) if local else UNSET,
        metrics_url=facts.health.metrics_url or UNSET,
        replicas=UNSET if pods is None else pods.replicas,
        ready_replicas=UNSET if pods is None else pods.ready,
        selector=UNSET if pods is None else pods.selector,
    )


def _findings(facts: Facts) -> dict[str, Finding]:
    reachable = facts.store_error is None
    accepted = not facts.rejected
    return {
        "Accepted": Finding(accepted, "Accepted" if accepted else "Invalid", "\n".join(facts.rejected)),
        "QuotaStoreReachable": Finding(reachable, "Answers" if reachable else "NoAnswer", facts.store_error or ""),
        "TenantsProgrammed": facts.programmed,
        "Available": Finding(facts.health.available, facts.health.reason, facts.health.message),
        **facts.health.others,
        "Degraded": _degraded(facts),
    }


def _degraded(facts: Facts) -> Finding:
    """What stays wrong until somebody does something about it."""
    pods = facts.health.others.get("Degraded", Finding(False, "AsExpected"))
    if not facts.refused:
        return pods
    told = (*facts.refused, *([pods.message] if pods.holds else []))
    return Finding(True, OBJECTS_REFUSED, "\n".join(told))


def _ready(findings: Mapping[str, Finding]) -> Finding:
    """The first that is not as it should be, in their order; what is degraded explains more than what it leads to."""
    wrong = {type: finding for type, finding in findings.items() if finding.holds is not (type not in BAD_WHEN_TRUE)}
    first = wrong.get("Degraded") or next(iter(wrong.values()), None)
    return Finding(True, "Ready") if first is None else Finding(False, first.reason, first.message)


def _stalled(findings: Mapping[str, Finding]) -> Finding | None:
    """Until somebody edits something. What a cluster may mend by itself, by another node say, only keeps Ready from True."""
    degraded = findings["Degraded"]
    if degraded.reason == OBJECTS_REFUSED:
        return degraded
    progressing = findings.get("Progressing")
    if progressing is not None and progressing.reason == STUCK:
        return Finding(True, degraded.reason, degraded.message or progressing.message)
    return None


def _shortened(message: str) -> str:
    return message if len(message) <= MESSAGE_CHARACTERS else message[: MESSAGE_CHARACTERS - 1] + "…"


def _tenants(facts: Facts, *, with_quota: bool) -> tuple[TenantStatus, ...]:
    return tuple(
        TenantStatus(
            name=tenant.name,
            endpoint=facts.access[tenant.name].endpoint,
            credentials=facts.access[tenant.name].credentials,
            suspended=tenant.suspend,
            quota=tenant.quota if with_quota else UNSET,
        )
        for tenant in facts.resource.deployment.spec.tenants
    )
