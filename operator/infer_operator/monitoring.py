"""The operator's HTTP side: /metrics, and /healthz, which fails when the process should be started anew."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from infer_operator.kube import KubeError


@contextlib.asynccontextmanager
async def serving(port: int, registry: CollectorRegistry, trouble: Callable[[], str]) -> AsyncIterator[None]:
    """Port 0: nothing is served. `trouble` says in words why the process is not well. Raises KubeError for a port in use."""
    if port == 0:
        yield
        return

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def health(request: web.Request) -> web.Response:
        found = trouble()
        return web.Response(text=found or "ok", status=503 if found else 200)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", health)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, None, port).start()
        except OSError as error:
            raise KubeError(f"--metrics-port: port {port}: {error.strerror}; give another, or 0 for none") from error
        yield
    finally:
        await runner.cleanup()
