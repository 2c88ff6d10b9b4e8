"""PodMonitors on a real API server that comes to know that kind while the operator runs, and forgets it again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infer_operator.kube import OPTIONAL, RESOURCE, Kind, Object

DEFINITION = Kind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions")
(POD_MONITOR,) = OPTIONAL
FILE = Path(__file__).parents[1] / "config/podmonitors.yaml"
PLURAL_NAME = "podmonitors.monitoring.coreos.com"


async def undefine(home: Any) -> None:
    found = await home.kube.read(DEFINITION, "", PLURAL_NAME)
    if found is not None:
        await home.kube.delete(DEFINITION, "", PLURAL_NAME, found["metadata"]["uid"])


@pytest.fixture
async def without_the_kind(home: Any) -> AsyncIterator[None]:
    """Before and after. Whatever else looks after this cluster would make PodMonitors meanwhile: run it alone."""
    assert not await home.kube.exists(POD_MONITOR), "this cluster knows PodMonitors already"
    yield
    await undefine(home)


async def test_pod_monitors_come_and_go_with_their_kind(
    home: Any, without_the_kind: None, operators: Any, until: Any, until_leads: Any
) -> None:
    operator = operators(sweep_seconds=1)
    operator.start()
    await until_leads(operator)
    await home.apply("d", "acme", replicas=0, observability={"labels": {"release": "prometheus"}})
    resource = await home.settled("d")
    assert home.conditions(resource)["Degraded"] == "False"

    manifest = yaml.safe_load(FILE.read_text())
    manifest["metadata"]["namespace"] = ""
    await home.kube.apply(manifest, DEFINITION)

    async def monitor() -> Object | None:
        found: Object | None = await home.read(POD_MONITOR, "d")
        return found

    made = await until(monitor, "a PodMonitor, with the next sweep")
    assert made["metadata"]["labels"]["release"] == "prometheus"
    assert made["metadata"]["ownerReferences"][0]["uid"] == resource["metadata"]["uid"]
    labels = {"inferengine.dev/deployment": "d", "app.kubernetes.io/component": "server"}
    endpoint = {"port": "http", "path": "/metrics", "honorLabels": True}
    assert made["spec"] == {"selector": {"matchLabels": labels}, "podMetricsEndpoints": [endpoint]}

    await home.delete(POD_MONITOR, "d")
    await until(monitor, "it is mended")
    await home.apply("d", "acme", replicas=0, observability={"podMonitor": "Disabled"})

    async def is_gone() -> bool:
        return await monitor() is None

    await until(is_gone, "it goes where it isn't wanted")
    await home.kube.merge(RESOURCE, home.namespace, "d", {"spec": {"observability": {"podMonitor": "Auto"}}})
    await until(monitor, "it comes back")

    await undefine(home)

    async def is_forgotten() -> bool:
        return not await home.kube.exists(POD_MONITOR)

    await until(is_forgotten, "the kind is gone")
    await home.apply("d", "acme", "globex", replicas=0)
    resource = await home.settled("d")
    await home.condition("d", "Degraded", "False")
    assert operator.stop() == 0
    assert "Traceback" not in operator.log()
