"""What Prometheus sees: each tenant's part of the service, and the engine's state. Names and meanings: docs/metrics.md.

In flow observations by the gateway and the engine's Snapshot each second; out flows the text of /metrics. Labels are the tenant
identity and closed sets of outcomes, never anything that a client chose.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infer_engine.cache.shares import EvictionCause
from infer_server import ipc
from infer_server.quota.reservation import Use

TENANT_LABELS = ("namespace", "deployment", "tenant")
OTHER = "other"
TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)

Labels = tuple[str, str, str]


class Metrics:
    """One pod's registry. Used from the gateway's event loop only."""

    def __init__(self, namespace: str, deployment: str, max_tenants: int, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = TenantLabels(namespace, deployment, max_tenants)
        self.families = Families(self.registry)
        self.engine = EngineCollector(self._labels)
        self.registry.register(self.engine)
        build = Info("inferengine_build", "Versions of this server", registry=self.registry)
        build.info({"version": version("inferengine"), "python": platform.python_version(), "model": model_name})

    def tenant(self, tenant_id: str) -> TenantMetrics:
        """The tenant's own series, or those of `other` beyond the limit."""
        return TenantMetrics(self.families, self._labels.of(tenant_id))

    def drop_tenant(self, tenant_id: str) -> None:
        labels = self._labels.drop(tenant_id)
        if labels is not None:
            self.families.drop(labels)
        self.engine.drop(tenant_id)


class TenantLabels:
    """Which label values stand for which tenant. A tenant keeps its labels while it exists, also when others leave."""

    def __init__(self, namespace: str, deployment: str, limit: int) -> None:
        self._namespace = namespace
        self._deployment = deployment
        self._limit = limit
        self._labels: dict[str, Labels] = {}
        self._num_named = 0

    def of(self, tenant_id: str) -> Labels:
        labels = self._labels.get(tenant_id)
        if labels is None:
            name = tenant_id.rsplit("/", 1)[-1] if self._num_named < self._limit else OTHER
            self._num_named += name != OTHER
            labels = self._labels[tenant_id] = (self._namespace, self._deployment, name)
        return labels

    def known(self, tenant_id: str) -> Labels | None:
        return self._labels.get(tenant_id)

    def drop(self, tenant_id: str) -> Labels | None:
        """The labels whose series are to go: none while they are shared as `other`."""
        labels = self._labels.pop(tenant_id, None)
        if labels is None or labels[-1] == OTHER:
            return None
        self._num_named -= 1
        return labels


class Families:
    """The metric families that the gateway writes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"inferengine_{name}", text, (*TENANT_LABELS, *more), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"inferengine_{name}", text, TENANT_LABELS, registry=registry, buckets=buckets)

        self.requests = counter("requests_total", "Requests that ended, by finish reason or error code", "outcome")
        self.active = Gauge(
            "inferengine_active_requests", "Requests that began and did not end", TENANT_LABELS, registry=registry
        )
        self.prompt = counter("prompt_tokens_total", "Prompt tokens of requests that ran, computed or cached")
        self.cached = counter("cached_tokens_total", "Prompt tokens read from the prefix cache")
        self.generated = counter("generated_tokens_total", "Output tokens")
        self.ttft = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token", TTFT_BUCKETS
        )
        self.itl = histogram("inter_token_seconds", "Between two tokens of one request", ITL_BUCKETS)
        self.queue = histogram(
            "queue_seconds", "From the engine's acceptance of a request to its first step", QUEUE_BUCKETS
        )
        self.quota = counter("quota_decisions_total", "Answers of the quota store to new requests", "decision")
        self._plain = (self.active, self.prompt, self.cached, self.generated, self.ttft, self.itl, self.queue)

    def drop(self, labels: Labels) -> None:
        for family in self._plain:
            family.remove(*labels)
        by_name = dict(zip(TENANT_LABELS, labels, strict=True))
        self.requests.remove_by_labels(by_name)
        self.quota.remove_by_labels(by_name)


class TenantMetrics:
    """One tenant's series, resolved once: an observation costs no look-up by label."""

    def __init__(self, families: Families, labels: Labels) -> None:
        self._families = families
        self._labels = labels
        self._active = families.active.labels(*labels)
        self._prompt = families.prompt.labels(*labels)
        self._cached = families.cached.labels(*labels)
        self._generated = families.generated.labels(*labels)
        self._ttft = families.ttft.labels(*labels)
        self._itl = families.itl.labels(*labels)
        self._queue = families.queue.labels(*labels)

    def started(self) -> None:
        self._active.inc()

    def finished(self, outcome: str) -> None:
        self._active.dec()
        self._families.requests.labels(*self._labels, outcome).inc()

    def refused(self, code: str) -> None:
        """A request that never began."""
        self._families.requests.labels(*self._labels, code).inc()

    def quota_decided(self, decision: str) -> None:
        self._families.quota.labels(*self._labels, decision).inc()

    def used(self, use: Use) -> None:
        self._prompt.inc(use.computed_tokens + use.cached_tokens)
        self._cached.inc(use.cached_tokens)
        self._generated.inc(use.output_tokens)

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def next_tokens(self, seconds: float, num_tokens: int) -> None:
        """`num_tokens` came together, `seconds` after the one before them."""
        for _ in range(num_tokens):
            self._itl.observe(seconds / num_tokens)

    def queued(self, seconds: float) -> None:
        self._queue.observe(seconds)


class EngineCollector(Collector):
    """Turns the engine's newest Snapshot into metrics. Counters go on rising when an engine process is replaced."""

    def __init__(self, labels: TenantLabels) -> None:
        self._labels = labels
        self._up = False
        self._stats: dict[str, float] = {}
        self._tenants: dict[str, ipc.TenantCache] = {}
        self._past_stats: dict[str, float] = {}
        self._past_tenants: dict[str, ipc.TenantCache] = {}

    def update(self, snapshot: ipc.Snapshot) -> None:
        self._up = True
        self._stats = snapshot.stats
        self._tenants = {entry.tenant: entry for entry in snapshot.tenants}

    def engine_lost(self) -> None:
        """What the lost engine counted becomes the base of the next one's counts."""
        self._up = False
        for field, _, _ in ENGINE_COUNTERS:
            self._past_stats[field] = self._past_stats.get(field, 0.0) + self._stats.get(field, 0.0)
        for tenant, entry in self._tenants.items():
            self._past_tenants[tenant] = _sum(tenant, (entry, self._past_tenants.get(tenant)), kv_tokens=0)
        self._stats, self._tenants = {}, {}

    def drop(self, tenant_id: str) -> None:
        self._tenants.pop(tenant_id, None)
        self._past_tenants.pop(tenant_id, None)

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("inferengine_engine_up", "1 while an engine process serves", value=float(self._up))
        for field, name, text in ENGINE_GAUGES:
            yield GaugeMetricFamily(f"inferengine_engine_{name}", text, value=self._stats.get(field, 0.0))
        for field, name, text in ENGINE_COUNTERS:
            total = self._past_stats.get(field, 0.0) + self._stats.get(field, 0.0)
            yield CounterMetricFamily(f"inferengine_engine_{name}", text, value=total)
        yield from self._collect_tenants()

    def _collect_tenants(self) -> Iterator[Metric]:
        rows: dict[Labels, ipc.TenantCache] = {}
        for tenant in self._tenants.keys() | self._past_tenants.keys():
            labels = self._labels.known(tenant)
            if labels is not None:  # a removed tenant's blocks may live on in the engine for a while
                parts = (self._tenants.get(tenant), self._past_tenants.get(tenant), rows.get(labels))
                rows[labels] = _sum(tenant, parts)
        for field, name, text in TENANT_COUNTERS:
            counter = CounterMetricFamily(f"inferengine_{name}", text, labels=TENANT_LABELS)
            for labels, row in rows.items():
                counter.add_metric(labels, getattr(row, field))
            yield counter
        evicted = CounterMetricFamily(
            "inferengine_evicted_tokens", "Cached tokens that were given up", labels=(*TENANT_LABELS, "cause")
        )
        for labels, row in rows.items():
            for cause, count in row.evicted_tokens.items():
                evicted.add_metric((*labels, cause), count)
        yield evicted
        held = GaugeMetricFamily(
            "inferengine_kv_tokens", "Slots of the KV pool held, running and cached", labels=TENANT_LABELS
        )
        for labels, row in rows.items():
            held.add_metric(labels, row.kv_tokens)
        yield held


def _sum(tenant: str, parts: Iterable[ipc.TenantCache | None], kv_tokens: int | None = None) -> ipc.TenantCache:
    given = [part for part in parts if part is not None]
    return ipc.TenantCache(
        tenant=tenant,
        lookup_tokens=sum(part.lookup_tokens for part in given),
        hit_tokens=sum(part.hit_tokens for part in given),
        kv_tokens=sum(part.kv_tokens for part in given) if kv_tokens is None else kv_tokens,
        evicted_tokens={cause: sum(part.evicted_tokens.get(cause, 0) for part in given) for cause in CAUSES},
        cross_evicted_tokens=sum(part.cross_evicted_tokens for part in given),
    )


CAUSES = get_args(EvictionCause)

ENGINE_GAUGES = (
    ("running_requests", "running_requests", "Requests in the engine's batch"),
    ("waiting_requests", "waiting_requests", "Requests in the engine's queue"),
    ("pool_tokens", "pool_tokens", "Slots of the KV pool"),
    ("pool_used_tokens", "pool_used_tokens", "Slots of the KV pool in use, running and cached"),
)
"""Field of EngineStats, name after inferengine_engine_, meaning."""

ENGINE_COUNTERS = (
    ("steps", "steps", "Steps computed"),
    ("prefill_tokens", "prefill_tokens", "Prompt tokens computed"),
    ("decode_tokens", "decode_tokens", "Output tokens computed"),
    ("prefill_time_s", "prefill_seconds", "Time of steps attributed to prompt tokens"),
    ("decode_time_s", "decode_seconds", "Time of steps attributed to output tokens"),
    ("preemptions", "preemptions", "Running requests put back into the queue for want of space"),
)

TENANT_COUNTERS = (
    ("lookup_tokens", "cache_lookup_tokens", "Prompt tokens looked up in the prefix cache"),
    ("hit_tokens", "cache_hit_tokens", "Prompt tokens found there"),
    (
        "cross_evicted_tokens",
        "tenant_cross_eviction_tokens",
        "Cached tokens that others took of what the tenant is guaranteed: 0, or there is a defect",
    ),
)
"""Field of TenantCache, name after inferengine_, meaning."""
