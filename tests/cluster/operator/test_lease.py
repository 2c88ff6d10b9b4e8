"""An operator that is told to stop: it ends its work, then it gives the Lease back, so that the next may begin at once."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from infer_operator.kube import LEASE, Object

WRITTEN_BY_OTHERS = ("PodDisruptionBudget/",)
"""whose status Kubernetes writes"""


async def lease(home: Any) -> Object:
    return dict(await home.get(LEASE, "inferengine-operator"))


async def held(home: Any, until: Any, operator: Any) -> None:
    identity = f"{socket.gethostname()}-{operator._process.pid}"

    async def look() -> bool:
        found = await home.read(LEASE, "inferengine-operator")
        return bool(found and found["spec"]["holderIdentity"] == identity)

    await until(look, "the lease is held")


async def test_told_to_stop_it_ends_its_work_and_then_gives_the_lease_back(
    home: Any, operators: Any, until: Any
) -> None:
    """At several moments: before it has read the cluster, amid its work, after it. Its last write is older than the release."""
    for number in range(6):
        await home.apply(f"d{number}", "acme", "globex")
    for turn, seconds in enumerate((0, 0.2, 0.6, 1.5)):
        operator = operators()
        operator.start()
        await held(home, until, operator)
        await asyncio.sleep(seconds)  # not to wait for anything: anywhere in its work
        assert operator.stop() == 0
        released = await lease(home)
        assert released["spec"]["holderIdentity"] == ""
        assert released["spec"].get("leaseTransitions", 0) == turn
        written = {
            title: int(version)
            for title, (_, version) in (await home.versions()).items()
            if not title.startswith(WRITTEN_BY_OTHERS)
        }
        assert {
            title for title, version in written.items() if version > int(released["metadata"]["resourceVersion"])
        } == set()
        await home.apply("d0", *(f"t{turn}-{index}" for index in range(5)))  # something to do for the next
    last = operators()
    last.start()
    for number in range(6):
        await home.settled(f"d{number}")
