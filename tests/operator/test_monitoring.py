"""What the operator serves over HTTP: its metrics, and whether it is well."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from infer_operator.kube import KubeError
from infer_operator.metrics import Metrics
from infer_operator.monitoring import serving


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def get(port: int, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def test_metrics_and_health() -> None:
    metrics, port, trouble = Metrics(), free_port(), ""
    metrics.leader.set(1)
    async with serving(port, metrics.registry, lambda: trouble):
        status, text = await get(port, "/metrics")
        assert (status, "inferengine_operator_leader 1.0" in text) == (200, True)
        assert await get(port, "/healthz") == (200, "ok")
        trouble = "nothing heard for long of Pod"
        assert await get(port, "/healthz") == (503, "nothing heard for long of Pod")
    async with serving(port, metrics.registry, str):  # it was given back
        assert (await get(port, "/healthz"))[0] == 200


async def test_a_port_that_is_taken_is_told() -> None:
    metrics, port = Metrics(), free_port()
    async with serving(port, metrics.registry, str):
        with pytest.raises(KubeError, match=f"--metrics-port: port {port}: .*give another, or 0 for none"):
            async with serving(port, metrics.registry, str):
                pass


async def test_port_0_serves_nothing() -> None:
    async with serving(0, Metrics().registry, str):
        pass
