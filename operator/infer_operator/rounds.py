"""Resources in, each looked at again and again out, evenly spread over time: for what no watch tells of.

Secrets that somebody edited or deleted, pods that fell silent, a store that lost its last writes. Edits and events go first:
these looks wait in the queue's other lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from infer_operator.kube import Object
from infer_operator.state import Key
from infer_operator.workqueue import Lane

LOOK_SECONDS = 30.0
SECRETS_PER_SECOND = 25.0
"""that are asked for their versions. Beyond some 700 of them a round takes longer, rather than the API server's time."""


class Rounds:
    def __init__(
        self,
        resources: Callable[[], Iterable[Object]],
        add: Callable[[Key, Lane], None],
        seconds: float = LOOK_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._resources = resources
        self._add = add
        self._seconds = seconds
        self._sleep = sleep

    async def run(self) -> None:
        while True:
            resources = list(self._resources())
            if not resources:
                await self._sleep(self._seconds)
            for resource in resources:
                await self._sleep(self.pause(resource, len(resources)))
                meta = resource["metadata"]
                self._add(Key(meta["namespace"], meta["name"]), Lane.RESYNC)

    def pause(self, resource: Object, number: int) -> float:
        """Before one of `number` resources. Its Secrets: its tenants' and their copies (each namespace counts as one more), its
        own, and the store's."""
        tenants = resource["spec"].get("tenants", ())
        copies = [namespace for tenant in tenants for namespace in tenant.get("secretNamespaces", ())]
        num_secrets = len(tenants) + len(copies) + len(set(copies)) + 2
        return max(self._seconds / number, num_secrets / SECRETS_PER_SECOND)
