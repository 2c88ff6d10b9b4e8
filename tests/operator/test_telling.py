"""What the operator tells: Events on transitions, single conditions, metrics."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import generate_latest

from infer_operator.controller import with_conditions
from infer_operator.events import transitions
from infer_operator.metrics import Metrics
from infer_operator.status import Condition, Status

RESOURCE = {"metadata": {"name": "d", "namespace": "ns", "uid": "u", "resourceVersion": "7"}}
DOCS = Path(__file__).parents[2] / "docs"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def status(**conditions: str) -> Status:
    made = tuple(
        Condition(
            type=type,
            status=value,
            reason="Why",
            message=f"{type} said",
            observed_generation=1,
            last_transition_time="x",
        )
        for type, value in conditions.items()
    )
    return Status(observed_generation=1, document_revision=1, conditions=made, tenants=(), tenant_count=0)


def told(before: Status | None, after: Status) -> list[tuple[str, str]]:
    return [(event["type"], event["message"]) for event in transitions(RESOURCE, before, after)]


def test_an_event_for_each_condition_that_turned() -> None:
    before = status(Ready="True", Degraded="False", Accepted="True")
    after = status(Ready="False", Degraded="True", Accepted="True")
    assert told(before, after) == [
        ("Warning", "Ready is False: Ready said"),
        ("Warning", "Degraded is True: Degraded said"),
    ]
    assert [type for type, _ in told(after, before)] == ["Normal", "Normal"]


def test_no_event_for_the_first_status_nor_without_change() -> None:
    assert told(None, status(Ready="False")) == []
    assert told(status(Ready="False"), status(Ready="False", Available="True")) == []


def test_no_event_for_an_edit_that_pods_take_over() -> None:
    served, following = status(TenantsProgrammed="True"), status(TenantsProgrammed="False")
    (condition,) = following.conditions
    following = msgspec.structs.replace(following, conditions=(msgspec.structs.replace(condition, reason="Following"),))
    assert told(served, following) == told(following, served) == []


def test_an_event_names_the_very_resource() -> None:
    (event,) = transitions(RESOURCE, status(Ready="True"), status(Ready="False"))
    assert event["involvedObject"]["uid"] == "u"
    assert event["metadata"]["namespace"] == "ns"
    assert event["metadata"]["name"].startswith("d.")


def test_one_condition_is_told_and_the_rest_of_the_status_stays() -> None:
    first = with_conditions({"tenants": [1]}, 3, {"Accepted": ("False", "Invalid", "no")}, NOW)
    assert (first["tenants"], first["observedGeneration"]) == ([1], 3)
    later = datetime(2026, 1, 2, tzinfo=UTC)
    again = with_conditions(first, 3, {"Accepted": ("False", "Invalid", "no")}, later)
    assert again == first
    turned = with_conditions(first, 4, {"Accepted": ("True", "Accepted", "")}, later)
    (condition,) = turned["conditions"]
    assert (condition["status"], condition["lastTransitionTime"]) == ("True", "2026-01-02T00:00:00Z")


def test_metrics_are_read_when_they_are_asked_for() -> None:
    metrics = Metrics()
    values: dict[str, Any] = {"depth": 0.0, "ages": {}, "ready": {}}
    metrics.observe_queue(lambda: values["depth"], lambda: 2.0)
    metrics.observe_watches(lambda: values["ages"])
    metrics.observe_resources(lambda: values["ready"])
    values |= {"depth": 3.0, "ages": {"Pod": 1.5}, "ready": {"True": 2.0}}
    metrics.on_request("patch", "Pod")
    text = generate_latest(metrics.registry).decode()
    for line in (
        "inferengine_operator_queue_depth 3.0",
        "inferengine_operator_queue_oldest_seconds 2.0",
        'inferengine_operator_watch_age_seconds{kind="Pod"} 1.5',
        'inferengine_operator_requests_total{kind="Pod",verb="patch"} 1.0',
        'inferengine_operator_resources{ready="True"} 2.0',
        "inferengine_operator_leader 0.0",
    ):
        assert line in text.splitlines()


def test_the_reference_names_exactly_the_metrics_that_exist() -> None:
    metrics = Metrics()
    metrics.observe_queue(lambda: 0.0, lambda: 0.0)
    metrics.observe_watches(dict)
    metrics.observe_resources(dict)
    theirs = (DOCS / "metrics.md").read_text().partition("\n## Of the operator\n")[2]
    documented = set(re.findall(r"^\| `(inferengine_\w+)`", theirs, re.MULTILINE))
    suffixes = {"counter": "_total"}
    assert documented == {family.name + suffixes.get(family.type, "") for family in metrics.registry.collect()}
