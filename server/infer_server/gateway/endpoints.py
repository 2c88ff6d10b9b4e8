"""Which tenants there are, and whether each has its endpoint: compares what the document wants with what is open.

In flow documents and the supervisor's answers; out flow orders to the supervisor, and the names of tenants that lost their place.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from infer_server import ipc
from infer_server.contract.document import DesiredState, TenantEntry

CLOSE_SECONDS = 1.0
"""A closed endpoint drops what it did not send: the last errors get this long to leave."""

Loss = Literal["removed", "suspended"]


@dataclass(frozen=True, slots=True)
class Tenant:
    id: str
    entry: TenantEntry


class Endpoints:
    """`send` takes orders to the supervisor. Nothing is opened before `serve`; then it follows every document.

    `on_change` is called when `obstacles` may have changed by what the supervisor told.
    """

    def __init__(
        self,
        send: Callable[[ipc.OpenEndpoint | ipc.CloseEndpoint], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._send = send
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._serving = False
        self._tenants: dict[str, Tenant] | None = None
        """None before the first document."""
        self._ordered: dict[str, ipc.OpenEndpoint] = {}
        """The latest order for each endpoint that is open or being opened."""
        self._fronts: dict[str, object] = {}
        self._closing: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, str] = {}

    def tenant(self, tenant_id: str) -> Tenant | None:
        return None if self._tenants is None else self._tenants.get(tenant_id)

    def tenant_ids(self) -> list[str]:
        return list(self._tenants or ())

    def apply(self, document: DesiredState) -> dict[str, Loss]:
        """The tenants whose requests are to end, and why. A new uid is a new tenant under the old name."""
        before = self._tenants or {}
        now = {document.tenant_id(entry.name): entry for entry in document.tenants}
        self._tenants = {id: Tenant(id, entry) for id, entry in now.items()}
        losses: dict[str, Loss] = {}
        for id, tenant in before.items():
            entry = now.get(id)
            if entry is None or entry.uid != tenant.entry.uid:
                losses[id] = "removed"
            elif entry.suspended and not tenant.entry.suspended:
                losses[id] = "suspended"
        self._reconcile()
        return losses

    def serve(self) -> None:
        """Requests can be answered now: open what is wanted. Endpoints stay open when the engine is away for a while."""
        self._serving = True
        self._reconcile()

    def opened(self, tenant_id: str, front: object) -> None:
        self._fronts[tenant_id] = front
        self._failures.pop(tenant_id, None)
        self._on_change()

    def lost(self, tenant_id: str, front: object) -> None:
        """That front is gone; another may have taken its place already. The supervisor starts the next by itself."""
        if self._fronts.get(tenant_id) is front:
            del self._fronts[tenant_id]
            self._on_change()

    def failed(self, tenant_id: str, message: str) -> None:
        """The supervisor has logged it, and tries again by itself."""
        self._failures[tenant_id] = message
        self._on_change()

    def obstacles(self) -> list[str]:
        """What still keeps this pod from serving every tenant, in words."""
        if self._tenants is None:
            return ["no desired-state document was read yet"]
        missing = [id for id in self._wanted() if id not in self._fronts]
        return [f"endpoint of {id}: {self._failures.get(id, 'is not open yet')}" for id in missing]

    def _wanted(self) -> dict[str, ipc.OpenEndpoint]:
        return {id: _order(tenant) for id, tenant in (self._tenants or {}).items() if not tenant.entry.suspended}

    def _reconcile(self) -> None:
        if not self._serving:
            return
        wanted = self._wanted()
        for id, order in wanted.items():
            if (timer := self._closing.pop(id, None)) is not None:
                timer.cancel()
            if self._ordered.get(id) != order:
                self._ordered[id] = order
                self._send(order)
        for id in self._ordered.keys() - wanted.keys() - self._closing.keys():
            self._closing[id] = self._loop.call_later(CLOSE_SECONDS, self._close, id)

    def _close(self, tenant_id: str) -> None:
        del self._closing[tenant_id]
        del self._ordered[tenant_id]
        self._send(ipc.CloseEndpoint(tenant_id))


def _order(tenant: Tenant) -> ipc.OpenEndpoint:
    users = {
        key: f"{tenant.entry.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}" for key in tenant.entry.public_keys
    }
    return ipc.OpenEndpoint(tenant.id, tenant.entry.port, users)
