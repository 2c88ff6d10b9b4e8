"""The gateway: knows the tenants, their fronts and every running request, and starts a task for each new one.

In flow messages of fronts, the desired state, the engine's coming and going; out flow replies by front, connection and request
id. All of it happens in one event loop, so no state here needs a lock.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import msgspec

from infer_server import ipc
from infer_server.contract.document import DesiredState
from infer_server.gateway.endpoints import Endpoints, Tenant
from infer_server.gateway.errors import RefusedError, draining, tenant_gone
from infer_server.gateway.lane import Lane, footprint
from infer_server.gateway.links import Pace, Stream
from infer_server.gateway.request_task import CANCELLED, CLIENT_GONE, Requester, RequestTask, Services, Stop
from infer_server.metrics import Metrics
from infer_server.protocol import MAX_FRAME

log = logging.getLogger(__name__)

MAX_FRONT_MESSAGE = 2 * MAX_FRAME
"""Bytes. A client's frame, and room for how MessagePack writes what came as JSON."""
FRONT_RATE = 8 << 20
FRONT_BURST = 16 << 20
"""Bytes a second that are read of one front: its tenant waits when it sends more, others don't."""
STOP_SECONDS = 15.0
"""The most that ending requests may take after they were told to: an engine step and a settlement."""


class Front:
    """One tenant's front process while its stream lives. `requests` belongs to the gateway."""

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self.lane = Lane()
        self.requests: dict[tuple[bytes, bytes], RequestTask] = {}
        """By connection and request id: both mean something to this front only."""
        self.stream: Stream


class Gateway:
    def __init__(self, services: Services, endpoints: Endpoints, metrics: Metrics) -> None:
        self._services = services
        self._endpoints = endpoints
        self._metrics = metrics
        self._fronts: set[Front] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.draining = False

    async def connect_front(self, tenant_id: str, sock: socket.socket) -> None:
        front = Front(tenant_id)
        front.stream = Stream(
            ipc.FrontToGateway,
            lambda message: self._received(front, message),
            lambda: self._front_lost(front),
            max_message=MAX_FRONT_MESSAGE,
            pace=Pace(FRONT_RATE, FRONT_BURST),
        )
        self._fronts.add(front)
        self._endpoints.opened(tenant_id, front)
        await front.stream.connect(sock)

    def apply(self, document: DesiredState) -> None:
        """Serve these tenants from now on; end the requests of those that left or were suspended."""
        losses = self._endpoints.apply(document)
        for tenant_id, reason in losses.items():
            refusal = tenant_gone(reason)
            requests = [
                request for front in self._fronts if front.tenant_id == tenant_id for request in front.requests.values()
            ]
            for request in requests:
                request.stop(Stop(refusal.code, refusal))
            log.info("tenant %s was %s; %d requests end", tenant_id, reason, len(requests))
            if reason == "removed":
                self._loop.call_later(STOP_SECONDS, self._forget_tenant, tenant_id)
        shares = {document.tenant_id(entry.name): entry.cache for entry in document.tenants}
        removed = [tenant_id for tenant_id, reason in losses.items() if reason == "removed"]
        self._services.engine.set_shares(shares, removed)
        for tenant_id in self._endpoints.tenant_ids():
            self._metrics.tenant(tenant_id)  # so that its series exist, at zero

    async def drain(self, seconds: float) -> None:
        """Take nothing new, let requests finish for `seconds`, then end them."""
        self.draining = True
        if self._tasks:
            log.info("draining: %d requests have %g s to finish", len(self._tasks), seconds)
            await asyncio.wait(self._tasks, timeout=seconds)
        for front in self._fronts:
            for request in front.requests.values():
                request.stop(Stop("draining", draining()))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
        await self._services.leases.close(STOP_SECONDS)

    def close(self) -> None:
        for front in self._fronts:
            front.stream.close()

    def _received(self, front: Front, message: ipc.FrontToGateway) -> None:
        match message:
            case ipc.Submit():
                self._submit(front, message)
            case ipc.Cancel():
                if (request := front.requests.get((message.conn, message.rid))) is not None:
                    request.stop(CANCELLED)
            case ipc.Gone():
                for (conn, _), request in front.requests.items():
                    if conn == message.conn:
                        request.stop(CLIENT_GONE)

    def _submit(self, front: Front, submit: ipc.Submit) -> None:
        key = (submit.conn, submit.rid)

        def reply(op: str, body: dict[str, Any]) -> None:
            front.stream.send(ipc.Reply(submit.conn, submit.rid, op, body))

        metrics = self._metrics.tenant(front.tenant_id)
        num_bytes = footprint(submit.request)
        try:
            tenant = self._admissible(front, key)
            front.lane.enter(num_bytes)
        except RefusedError as refusal:
            metrics.refused(refusal.code)
            reply("ERR", msgspec.to_builtins(refusal.to_err()))
            return
        requester = Requester(tenant.id, tenant.entry.uid, metrics, reply, lambda: front.stream.is_behind, front.lane)
        request = front.requests[key] = RequestTask(submit.request, requester, self._services)
        task = asyncio.get_running_loop().create_task(request.run())
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            del front.requests[key]
            front.lane.leave(num_bytes)

        task.add_done_callback(done)

    def _admissible(self, front: Front, key: tuple[bytes, bytes]) -> Tenant:
        """Raises RefusedError."""
        if self.draining:
            raise draining()
        tenant = self._endpoints.tenant(front.tenant_id)
        if tenant is None:
            raise tenant_gone("removed")
        if tenant.entry.suspended:
            raise tenant_gone("suspended")
        if key in front.requests:
            raise RefusedError("duplicate_request", "a request with this id is running on this connection")
        return tenant

    def _front_lost(self, front: Front) -> None:
        self._fronts.discard(front)
        self._endpoints.lost(front.tenant_id, front)
        for request in front.requests.values():
            request.stop(CLIENT_GONE)

    def _forget_tenant(self, tenant_id: str) -> None:
        """Its series go once its last request has been counted; unless it came back meanwhile."""
        if self._endpoints.tenant(tenant_id) is None:
            self._metrics.drop_tenant(tenant_id)
