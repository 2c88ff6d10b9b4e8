"""The dashboard and the alerts of manifests/: every query can be parsed, and asks for what server and operator really serve."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infer_engine.errors import QueueFullError
from infer_operator.metrics import Metrics as OperatorMetrics
from infer_operator.store import Store
from infer_server import ipc
from infer_server.metrics import Metrics as ServerMetrics
from infer_server.quota.errors import QuotaUnavailable

MANIFESTS = Path(__file__).parents[2] / "manifests"
DASHBOARD: dict[str, Any] = json.loads((MANIFESTS / "dashboards/inferengine.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((MANIFESTS / "alerts/inferengine.yaml").read_text())
ALERTS: list[dict[str, Any]] = [rule for group in RULES["spec"]["groups"] for rule in group["rules"]]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_A_SCRAPE = {"namespace", "pod"}
"""labels that Prometheus puts on what it finds by a PodMonitor"""
BY_GRAFANA = {"$__rate_interval": "5m"}


@pytest.fixture(scope="module")
def served() -> dict[str, set[str]]:
    """Each series' name with its labels, from the text that Prometheus gets."""
    server = ServerMetrics("ns", "demo", 10, "tiny")
    tenant = server.tenant("ns/demo/acme")
    tenant.quota_decided("unavailable")
    tenant.started()
    tenant.finished("stop")
    server.engine.update(ipc.Snapshot({}, [ipc.TenantCache("ns/demo/acme", 1, 1, 1, {"pressure": 1}, 0)]))
    operator, store = OperatorMetrics(), Store(lambda key, lane: None)
    operator.observe_queue(lambda: 0.0, lambda: 0.0)
    operator.observe_watches(lambda: {"Pod": 1.0})
    operator.observe_resources(store.readiness)
    operator.reconcile_seconds.labels("failed").observe(1)
    return {
        sample.name: set(sample.labels)
        for registry in (server.registry, operator.registry)
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


@dataclass
class Query:
    """What a PromQL expression asks for."""

    metrics: dict[str, dict[str, str]] = field(default_factory=dict)
    """by name: the labels that it selects by, with the values"""
    grouped: set[str] = field(default_factory=set)


def read(expression: str) -> Query:
    query = Query()
    for part in _parts(promql_parser.parse(expression)):
        if isinstance(part, promql_parser.VectorSelector):
            query.metrics[part.name or ""] = {matcher.name: matcher.value for matcher in part.matchers.matchers}
        elif isinstance(part, promql_parser.AggregateExpr) and part.modifier:
            query.grouped |= set(part.modifier.labels)
    return query


def _parts(expression: Any) -> Iterator[Any]:
    yield expression
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        if (inner := getattr(expression, name, None)) is not None:
            yield from _parts(inner)
    for inner in getattr(expression, "args", ()):
        yield from _parts(inner)


def expressions() -> dict[str, str]:
    found = {alert["alert"]: alert["expr"] for alert in ALERTS}
    for panel in PANELS:
        for target in panel["targets"]:
            text = target["expr"]
            for variable, value in BY_GRAFANA.items():
                text = text.replace(variable, value)
            found[f"{panel['title']} {target['refId']}"] = text
    return found


@pytest.mark.parametrize("expression", expressions().values(), ids=expressions())
def test_every_query_asks_for_what_is_served(served: dict[str, set[str]], expression: str) -> None:
    query = read(expression)
    assert query.metrics
    for name, selected in query.metrics.items():
        assert name in served
        labels = served[name] | OF_A_SCRAPE
        assert set(selected) <= labels, name
        assert query.grouped <= labels, name


def test_a_query_of_something_else_is_found_out(served: dict[str, set[str]]) -> None:
    query = read('sum by (who) (rate(inferengine_no_such_total{a="b"}[5m])) / vector(1)')
    assert query == Query({"inferengine_no_such_total": {"a": "b"}}, {"who"})
    assert not query.metrics.keys() & served.keys()
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        read("sum by (")


def test_values_that_alerts_select_are_values_that_occur() -> None:
    def value(alert: str, metric: str, label: str) -> str:
        return read(expressions()[alert]).metrics[metric][label]

    assert value("InferEngineQuotaUnavailable", "inferengine_quota_decisions_total", "decision") == "unavailable"
    assert QuotaUnavailable.code == "quota_unavailable"
    assert value("InferEngineQueueFull", "inferengine_requests_total", "outcome") == QueueFullError.code
    ready = value("InferEngineDeploymentsNotReady", "inferengine_operator_resources", "ready")
    assert ready in Store(lambda key, lane: None).readiness()


def test_alerts_are_whole() -> None:
    assert (RULES["apiVersion"], RULES["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    names = [alert["alert"] for alert in ALERTS]
    assert len(set(names)) == len(names)
    for alert in ALERTS:
        assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}
        assert alert["labels"].keys() == {"severity"}
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"].keys() == {"summary", "description"}
        grouped = read(alert["expr"]).grouped
        used = set(yaml.safe_dump(alert["annotations"]).split("$labels.")[1:])
        assert {text.split()[0] for text in used} <= grouped, alert["alert"]


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "namespace", "deployment", "tenant"}
    for panel in PANELS:
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        where = panel["gridPos"]
        assert where["x"] + where["w"] <= 24


def test_variables_ask_for_what_is_served(served: dict[str, set[str]], read_label: Callable[[str], list[str]]) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = read_label(variable["definition"])
            (name,) = read(selector).metrics
            assert label in served[name]


@pytest.fixture
def read_label() -> Callable[[str], list[str]]:
    """Of Grafana's label_values(SELECTOR, LABEL)."""
    return lambda text: text.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
