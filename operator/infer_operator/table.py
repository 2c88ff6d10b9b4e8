"""Status -> text for a terminal. Pure."""

from __future__ import annotations

from pathlib import Path

from msgspec import UnsetType
from tabulate import tabulate

from infer_operator.status import Status
from infer_server.contract.document import QuotaLimits


def tenants(status: Status) -> str:
    rows = [
        (
            tenant.name,
            "suspended" if tenant.suspended else tenant.endpoint,
            quota(tenant.quota),
        )
        for tenant in status.tenants
    ]
    return tabulate(rows, headers=("tenant", "endpoint", "quota"))


def places(status: Status) -> str:
    """The long paths, which a table would break: one line for all credentials files, one for the metrics."""
    folders = sorted({str(Path(tenant.credentials).parent) for tenant in status.tenants})
    return "\n".join([*(f"credentials: {folder}/TENANT.json" for folder in folders), f"metrics: {status.metrics_url}"])


def conditions(status: Status) -> str:
    rows = [
        (condition.type, condition.status, condition.reason, condition.message.replace("\n", "; "))
        for condition in status.conditions
    ]
    return tabulate(rows, headers=("condition", "status", "reason", "message"))


def quota(limits: QuotaLimits | UnsetType) -> str:
    if isinstance(limits, UnsetType):
        return ""
    parts = [
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.max_concurrent_requests, "at once"),
        (limits.tokens_per_day, "tokens/day"),
        (limits.tokens_per_month, "tokens/month"),
    ]
    return ", ".join(f"{value} {unit}" for value, unit in parts if value is not None) or "none"
