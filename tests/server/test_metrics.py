import re
from dataclasses import asdict, fields
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from infer_engine.config import EngineConfig
from infer_server import ipc
from infer_server.metrics import Metrics
from infer_server.quota.reservation import Use

ACME = "local/demo/acme"
DOCS = Path(__file__).parents[2] / "docs"


def new_metrics(max_tenants: int = 10) -> Metrics:
    return Metrics("local", "demo", max_tenants, "tiny")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def of(tenant: str, **more: str) -> dict[str, str]:
    return {"namespace": "local", "deployment": "demo", "tenant": tenant, **more}


def snapshot(steps: int, *tenants: ipc.TenantCache) -> ipc.Snapshot:
    return ipc.Snapshot({"steps": steps, "running_requests": 2, "prefill_time_s": 0.5}, list(tenants))


def existing() -> set[str]:
    families = new_metrics().registry.collect()
    suffixes = {"counter": "_total", "info": "_info"}
    return {f.name + suffixes.get(f.type, "") for f in families}


def test_the_reference_names_exactly_the_metrics_that_exist() -> None:
    ours = (DOCS / "metrics.md").read_text().partition("\n## Of the operator\n")[0]
    documented = set(re.findall(r"^\| `(inferengine_\w+)`", ours, re.MULTILINE))
    assert documented == existing()


def test_the_advice_names_only_metrics_and_settings_that_exist() -> None:
    text = re.sub(r"```.*?```", "", (DOCS / "tuning.md").read_text(), flags=re.DOTALL)
    code = re.findall(r"`([^`]+)`", text)
    metrics = {name for span in code for name in re.findall(r"inferengine_\w+", span)}
    assert metrics <= existing()
    assert len(metrics) >= 8
    endings = [span.removeprefix("…").split("{")[0] for span in code if span.startswith("…")]
    assert all(any(name.endswith(ending) for name in existing()) for ending in endings)
    camel = {field.name: re.sub(r"_(\w)", lambda m: m[1].upper(), field.name) for field in fields(EngineConfig)}
    parameters = {span for span in code if re.fullmatch(r"(max|schedule|chunked)[A-Z]\w+", span)}
    assert parameters <= set(camel.values())
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", text, re.MULTILINE)
    assert {name for name, _ in rows} == {
        "maxConcurrentRequests",
        "maxBatchSize",
        "maxCacheTokens",
        "scheduleIntervalMs",
    }
    defaults = {camel[name]: value for name, value in asdict(EngineConfig()).items()}
    assert {name: float(value) for name, value in rows} == {name: defaults[name] for name, _ in rows}


def test_a_tenants_requests_are_counted_under_its_labels() -> None:
    metrics = new_metrics()
    tenant = metrics.tenant(ACME)
    assert value(metrics, "inferengine_prompt_tokens_total", **of("acme")) == 0  # there before the first request
    tenant.started()
    assert value(metrics, "inferengine_active_requests", **of("acme")) == 1
    tenant.quota_decided("allowed")
    tenant.first_token(0.2)
    tenant.next_tokens(0.4, 2)
    tenant.queued(0.01)
    tenant.used(Use(computed_tokens=60, cached_tokens=40, output_tokens=20))
    tenant.finished("stop")
    tenant.refused("invalid_request")
    assert value(metrics, "inferengine_active_requests", **of("acme")) == 0
    assert value(metrics, "inferengine_requests_total", **of("acme", outcome="stop")) == 1
    assert value(metrics, "inferengine_requests_total", **of("acme", outcome="invalid_request")) == 1
    assert value(metrics, "inferengine_prompt_tokens_total", **of("acme")) == 100
    assert value(metrics, "inferengine_cached_tokens_total", **of("acme")) == 40
    assert value(metrics, "inferengine_generated_tokens_total", **of("acme")) == 20
    assert value(metrics, "inferengine_inter_token_seconds_count", **of("acme")) == 2
    assert value(metrics, "inferengine_inter_token_seconds_sum", **of("acme")) == 0.4
    assert value(metrics, "inferengine_quota_decisions_total", **of("acme", decision="allowed")) == 1


def test_tenants_beyond_the_limit_share_one_series() -> None:
    metrics = new_metrics(max_tenants=1)
    for name in ("acme", "beta", "gamma"):
        metrics.tenant(f"local/demo/{name}").refused("x")
    assert value(metrics, "inferengine_requests_total", **of("acme", outcome="x")) == 1
    assert value(metrics, "inferengine_requests_total", **of("beta", outcome="x")) is None
    assert value(metrics, "inferengine_requests_total", **of("other", outcome="x")) == 2
    metrics.drop_tenant("local/demo/beta")
    assert value(metrics, "inferengine_requests_total", **of("other", outcome="x")) == 2
    metrics.drop_tenant(ACME)
    metrics.tenant("local/demo/delta").refused("x")  # takes the place that is free now
    metrics.tenant("local/demo/gamma").refused("x")  # stays where it was
    assert value(metrics, "inferengine_requests_total", **of("delta", outcome="x")) == 1
    assert value(metrics, "inferengine_requests_total", **of("other", outcome="x")) == 3


def test_a_removed_tenant_leaves_no_series() -> None:
    metrics = new_metrics()
    tenant = metrics.tenant(ACME)
    tenant.started()
    tenant.quota_decided("allowed")
    tenant.finished("stop")
    metrics.tenant("local/demo/beta")
    metrics.engine.update(snapshot(1, ipc.TenantCache(ACME, 1, 1, 1, {"pressure": 1}, 0)))
    metrics.drop_tenant(ACME)
    metrics.engine.update(
        snapshot(2, ipc.TenantCache(ACME, 1, 1, 1, {"pressure": 1}, 0))
    )  # its blocks are still in the engine
    tenants = {s.labels.get("tenant") for family in metrics.registry.collect() for s in family.samples}
    assert tenants == {"beta", None}


def test_engine_counters_go_on_when_the_engine_is_replaced() -> None:
    metrics = new_metrics()
    metrics.tenant(ACME)
    assert value(metrics, "inferengine_engine_up") == 0
    metrics.engine.update(snapshot(10, ipc.TenantCache(ACME, 100, 60, 30, {"pressure": 5}, 0)))
    assert value(metrics, "inferengine_engine_up") == 1
    metrics.engine.engine_lost()
    assert value(metrics, "inferengine_engine_up") == 0
    assert value(metrics, "inferengine_engine_running_requests") == 0
    assert value(metrics, "inferengine_kv_tokens", **of("acme")) == 0
    assert value(metrics, "inferengine_engine_steps_total") == 10
    metrics.engine.update(snapshot(3, ipc.TenantCache(ACME, 10, 4, 7, {"pressure": 0}, 0)))
    assert value(metrics, "inferengine_engine_steps_total") == 13
    assert value(metrics, "inferengine_engine_prefill_seconds_total") == 1.0
    assert value(metrics, "inferengine_cache_lookup_tokens_total", **of("acme")) == 110
    assert value(metrics, "inferengine_cache_hit_tokens_total", **of("acme")) == 64
    assert value(metrics, "inferengine_evicted_tokens_total", **of("acme", cause="pressure")) == 5
    assert value(metrics, "inferengine_kv_tokens", **of("acme")) == 7


def test_the_text_format_can_be_parsed() -> None:
    from prometheus_client import generate_latest

    metrics = new_metrics()
    metrics.tenant(ACME).first_token(0.1)
    assert list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
