"""What the operator tells Prometheus about itself; nothing of it names a resource, so it never grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

PREFIX = "inferengine_operator"


class Metrics:
    """One operator's. Each has its own registry, so that two in one process (tests) don't meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", help, labels, registry=self.registry)

        self.requests = counter("requests", "Requests sent to the API server", "verb", "kind")
        self.applies_sent = counter("applies_sent", "Objects that were written because they differed", "kind")
        self.applies_skipped = counter("applies_skipped", "Objects that were as wanted and were not written", "kind")
        self.swept_keys = counter("swept_keys", "Keys without an owner that were deleted from quota stores")
        self.reconcile_seconds = Histogram(
            f"{PREFIX}_reconcile_seconds",
            "Time of one reconcile by its result: done, waiting (for the store or an object), failed",
            ("result",),
            registry=self.registry,
        )
        self.leader = Gauge(f"{PREFIX}_leader", "1 while this process leads", registry=self.registry)

    def on_request(self, verb: str, kind: str) -> None:
        self.requests.labels(verb, kind).inc()

    def observe_queue(self, depth: Callable[[], float], oldest_seconds: Callable[[], float]) -> None:
        for name, help, read in (
            ("queue_depth", "Resources that wait to be reconciled", depth),
            ("queue_oldest_seconds", "How long the one that waits longest has waited", oldest_seconds),
        ):
            Gauge(f"{PREFIX}_{name}", help, registry=self.registry).set_function(read)

    def observe_watches(self, ages: Callable[[], Mapping[str, float]]) -> None:
        self.registry.register(_WatchAges(ages))


class _WatchAges(Collector):
    """Read when asked for: between two events nothing would set a gauge."""

    def __init__(self, ages: Callable[[], Mapping[str, float]]) -> None:
        self._ages = ages

    def describe(self) -> list[GaugeMetricFamily]:
        return [self._family()]

    def collect(self) -> list[GaugeMetricFamily]:
        family = self._family()
        for kind, seconds in sorted(self._ages().items()):
            family.add_metric([kind], seconds)
        return [family]

    def _family(self) -> GaugeMetricFamily:
        help = "Seconds since the API server last told anything about a kind; a bookmark comes each minute"
        return GaugeMetricFamily(f"{PREFIX}_watch_age_seconds", help, labels=["kind"])
