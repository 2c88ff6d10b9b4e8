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
        help = "Seconds since the API server last told anything about a kind; a bookmark comes each minute"
        self.registry.register(_Gauges("watch_age_seconds", help, "kind", ages))

    def observe_resources(self, readiness: Callable[[], Mapping[str, float]]) -> None:
        help = "InferenceDeployments by what their condition Ready says"
        self.registry.register(_Gauges("resources", help, "ready", readiness))


class _Gauges(Collector):
    """One family, read when asked for: between two events nothing would set a gauge."""

    def __init__(self, name: str, help: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._name = f"{PREFIX}_{name}"
        self._help = help
        self._label = label
        self._read = read

    def describe(self) -> list[GaugeMetricFamily]:
        return [self._family()]

    def collect(self) -> list[GaugeMetricFamily]:
        family = self._family()
        for value, number in sorted(self._read().items()):
            family.add_metric([value], number)
        return [family]

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._name, self._help, labels=[self._label])
