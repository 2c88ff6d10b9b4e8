"""The gateway process: puts the parts together, follows the store, obeys the supervisor and SIGTERM.

In flow the pod's configuration and the control socket; out flows the exit status.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

from infer_engine.errors import ConfigError
from infer_server import ipc
from infer_server.config import PodConfig
from infer_server.contract.document import DesiredState
from infer_server.contract.store import DocumentStore
from infer_server.gateway import probes
from infer_server.gateway.endpoints import Endpoints
from infer_server.gateway.engine_client import EngineClient
from infer_server.gateway.follower import Follower
from infer_server.gateway.gateway import Gateway
from infer_server.gateway.leases import Leases
from infer_server.gateway.links import Control
from infer_server.gateway.namespaces import NamespaceKeyError, NamespaceMinter
from infer_server.gateway.reporter import Reporter
from infer_server.gateway.request_task import Services
from infer_server.metrics import Metrics
from infer_server.quota.connection import connect
from infer_server.quota.store import QuotaStore

log = logging.getLogger(__name__)

EXIT_CONFIG = 2
TOKENIZER_THREADS = 4
STORE_SECONDS = 0.25
"""For one attempt of a quota call, of which there are two."""


def run(config: PodConfig, control_fd: int) -> int:
    """0 after SIGTERM, drained; 1 when the supervisor is lost; 2 when the configuration can't be used."""
    import uvloop  # the other processes of the pod never need it

    try:
        return uvloop.run(_run(config, socket.socket(fileno=control_fd)))
    except (ConfigError, NamespaceKeyError, OSError) as error:
        log.error("the gateway can't start: %s", error)
        return EXIT_CONFIG


async def _run(config: PodConfig, control_sock: socket.socket) -> int:
    minter = NamespaceMinter.from_file(config.namespace_key_file)
    connection = connect(config.store_url, timeout_seconds=STORE_SECONDS)
    quota = QuotaStore(connection)  # gives the store its functions with the first call: it may be away now
    documents = DocumentStore(config.store_url, config.namespace, config.deployment)
    try:
        with ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer") as pool:
            process = GatewayProcess(config, control_sock, minter, documents, quota, pool)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, process.stop)
            return await process.run()
    finally:
        await documents.close()
        await connection.client.aclose()


class GatewayProcess:
    """Wires events to those who handle them; holds no state of its own but how the process is to end."""

    def __init__(
        self,
        config: PodConfig,
        control_sock: socket.socket,
        minter: NamespaceMinter,
        documents: DocumentStore,
        quota: QuotaStore,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._connecting: set[asyncio.Task[None]] = set()
        self._metrics = Metrics(config.namespace, config.deployment, config.max_metric_tenants, config.model_name)
        self._control = Control(control_sock, self._from_supervisor, lambda: self._end(1))
        self._reporter = Reporter(documents, config.pod_name, self.obstacles)
        self._endpoints = Endpoints(self._control.send, self._reporter.changed)
        self._engine = EngineClient(
            pool,
            on_ready=lambda model: self._open_endpoints(),
            on_snapshot=self._metrics.engine.update,
            on_lost=self._metrics.engine.engine_lost,
        )
        self._leases = Leases(quota)
        services = Services(config.model_name, self._engine, quota, self._leases, minter, pool)
        self._gateway = Gateway(services, self._endpoints, self._metrics)
        self._follower = Follower(documents, self._apply, self._open_endpoints)

    async def run(self) -> int:
        """Until `stop` (then 0), or the loss of the supervisor or of a part of this process (then 1)."""
        app = probes.build_app(self.obstacles, self._metrics.registry)
        http = await probes.serve(app, self._config.http_host, self._config.http_port)
        works = (self._follower.run(), self._leases.run(), self._reporter.run())
        background = [self._loop.create_task(work) for work in works]
        for task in background:
            task.add_done_callback(self._background_ended)
        try:
            status = await self._exit
            if status == 0:
                await self._gateway.drain(self._config.drain_seconds)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            self._gateway.close()
            self._engine.close()
            self._control.close()
            await http.cleanup()
        return status

    def stop(self) -> None:
        """Drain, then let `run` return 0."""
        self._end(0)

    def obstacles(self) -> list[str]:
        """Why this pod is not ready; empty when it is."""
        obstacles = []
        if self._gateway.draining:
            obstacles.append("draining")
        if self._engine.model is None:
            refusal = self._engine.refusal
            obstacles.append("the model is not loaded" if refusal is None else f"the model is not loaded: {refusal}")
        if not self._follower.reachable:
            obstacles.append("the store does not answer")
        return obstacles or self._endpoints.obstacles()  # before that endpoints can't be open

    def _apply(self, document: DesiredState) -> None:
        self._gateway.apply(document)
        self._reporter.applied(document.version)

    def _open_endpoints(self) -> None:
        if self._engine.model is not None and self._follower.reachable:
            self._endpoints.serve()
        self._reporter.changed()

    def _from_supervisor(self, message: ipc.Link | ipc.EndpointFailed, peer: socket.socket | None) -> None:
        match message:
            case ipc.Link() if peer is not None:
                connecting = self._loop.create_task(self._connect(message, peer))
                self._connecting.add(connecting)
                connecting.add_done_callback(self._connecting.discard)
            case ipc.Link():
                log.error("the supervisor announced a %s without its descriptor", message.kind)
            case ipc.EndpointFailed():
                self._endpoints.failed(message.tenant, message.message)

    async def _connect(self, link: ipc.Link, peer: socket.socket) -> None:
        if link.kind == "engine":
            await self._engine.connect(peer)
        else:
            await self._gateway.connect_front(link.tenant, peer)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        """It ends by cancellation only; a defect there must not leave a gateway that follows and renews nothing."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the gateway ends, for a part of it failed", exc_info=error)
            self._end(1)

    def _end(self, status: int) -> None:
        if not self._exit.done():
            self._exit.set_result(status)
