"""What was observed in, the status that people and tools read out. Pure.

Conditions follow the conventions of Kubernetes: type, status, reason, message, and the time of the last change of status.
Ready sums up the others; a tool that knows kstatus needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from msgspec import Struct

from infer_operator.state import Resource
from infer_server.contract.document import QuotaLimits


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
    credentials_file: str
    quota: QuotaLimits
    suspended: bool = False


class Status(Struct, frozen=True, kw_only=True, rename="camel"):
    observed_generation: int
    document_revision: int
    conditions: tuple[Condition, ...]
    tenants: tuple[TenantStatus, ...]
    processes: dict[str, int]
    """name -> process id, of those that run"""
    metrics_url: str | None = None

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
class Health:
    """How the pods are, as far as a backend can tell from outside."""

    available: bool
    reason: str
    message: str = ""
    processes: Mapping[str, int] = field(default_factory=dict)
    metrics_url: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a status is made of."""

    resource: Resource
    access: Mapping[str, Access]
    """by tenant"""
    rejected: tuple[str, ...]
    store_error: str | None
    document_revision: int
    programmed: bool
    """The document in the store is the one that was wanted."""
    health: Health


def build(facts: Facts, before: Status | None, now: datetime) -> Status:
    """The new status; a condition whose status did not change keeps its time."""
    generation = facts.resource.generation
    known = {condition.type: condition for condition in before.conditions} if before else {}
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def condition(type: str, holds: bool | None, reason: str, message: str = "") -> Condition:
        status = "Unknown" if holds is None else str(holds)
        last = known.get(type)
        since = last.last_transition_time if last is not None and last.status == status else stamp
        return Condition(
            type=type,
            status=status,
            reason=reason,
            message=message,
            observed_generation=generation,
            last_transition_time=since,
        )

    conditions = [condition(type, *told) for type, told in _conditions(facts).items()]
    missing = [one for one in conditions if one.status != "True"]
    reason, message = ("Ready", "") if not missing else (missing[0].reason, missing[0].message)
    conditions.append(condition("Ready", not missing, reason, message))
    return Status(
        observed_generation=generation,
        document_revision=facts.document_revision,
        conditions=tuple(conditions),
        tenants=_tenants(facts),
        processes=dict(facts.health.processes),
        metrics_url=facts.health.metrics_url,
    )


def _conditions(facts: Facts) -> dict[str, tuple[bool | None, str, str]]:
    reachable = facts.store_error is None
    accepted = not facts.rejected
    return {
        "Accepted": (accepted, "Accepted" if accepted else "Invalid", "\n".join(facts.rejected)),
        "QuotaStoreReachable": (reachable, "Answers" if reachable else "NoAnswer", facts.store_error or ""),
        "TenantsProgrammed": (
            facts.programmed if reachable else None,
            "Programmed" if facts.programmed else "Pending",
            "" if facts.programmed else "the tenants are not in the store yet",
        ),
        "Available": (facts.health.available, facts.health.reason, facts.health.message),
    }


def _tenants(facts: Facts) -> tuple[TenantStatus, ...]:
    return tuple(
        TenantStatus(
            name=tenant.name,
            endpoint=facts.access[tenant.name].endpoint,
            credentials_file=facts.access[tenant.name].credentials,
            quota=tenant.quota,
            suspended=tenant.suspend,
        )
        for tenant in facts.resource.deployment.spec.tenants
    )
