"""Keeps the gateway in step with the desired-state document, and knows whether the store answers at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from infer_server.contract.document import DesiredState
from infer_server.contract.store import DocumentStore, StoreUnavailableError

PROBE_SECONDS = 1.0


class Follower:
    """`run` it as a task. `apply` gets each newer document."""

    def __init__(
        self, store: DocumentStore, apply: Callable[[DesiredState], None], on_reachable: Callable[[], None]
    ) -> None:
        self._store = store
        self._apply = apply
        self._on_reachable = on_reachable
        self.reachable = False
        """The store answered at the latest probe."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._probe())
            tasks.create_task(self._follow())

    async def _probe(self) -> None:
        while True:
            try:
                await self._store.ping()
            except StoreUnavailableError:
                self.reachable = False
            else:
                if not self.reachable:
                    self.reachable = True
                    self._on_reachable()
            await asyncio.sleep(PROBE_SECONDS)

    async def _follow(self) -> None:
        async for document in self._store.follow():
            self._apply(document)
