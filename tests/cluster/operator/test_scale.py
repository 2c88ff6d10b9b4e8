"""Many resources at once: all settle, a restart writes nothing, and of those that go while nobody looks nothing is left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from infer_operator.kube import RESOURCE, Object

RESOURCES = 1000 if os.environ.get("INFERENGINE_TEST_PROFILE") == "soak" else 50
CLIENTS = 16
PATIENCE_SECONDS = 600.0


async def test_many_come_stay_and_go(home: Any, operators: Any, until: Any, until_leads: Any) -> None:
    operator = operators()
    operator.start()
    await until_leads(operator)
    names = [f"r-{number}" for number in range(RESOURCES)]
    await at_once([partial(home.apply, name, "acme", "globex", replicas=0) for name in names])

    async def all_are_settled() -> bool:
        return sum(map(is_settled, await resources(home))) == RESOURCES

    await until(all_are_settled, "all are settled", PATIENCE_SECONDS)
    documents = [home.document(name) for name in names]
    ids = [entry.uid for document in documents for entry in document.tenants]
    assert len(set(ids)) == 2 * RESOURCES

    operator.stop()
    before = {found["metadata"]["name"]: found["metadata"]["resourceVersion"] for found in await resources(home)}
    operator.start()
    await until_leads(operator)

    async def has_looked_at_all() -> bool:
        found = await asyncio.to_thread(operator.metrics)
        return bool(found.get('inferengine_operator_reconcile_seconds_count{result="done"}', 0) >= RESOURCES)

    await until(has_looked_at_all, "every resource was looked at", PATIENCE_SECONDS)
    assert sum(operator.writes().values()) == 0
    assert {
        found["metadata"]["name"]: found["metadata"]["resourceVersion"] for found in await resources(home)
    } == before

    operator.kill()
    keep, stripped = names[0], set(names[1::2])
    await at_once([partial(home.delete, RESOURCE, name) for name in names if name != keep])
    stripping: Object = {"metadata": {"finalizers": []}}
    await at_once([partial(home.kube.merge, RESOURCE, home.namespace, name, stripping) for name in sorted(stripped)])
    operators(sweep_seconds=2).start()

    async def one_is_left() -> bool:
        return [found["metadata"]["name"] for found in await resources(home)] == [keep]

    async def no_orphans() -> bool:
        """In Kubernetes and in the store."""
        owners = {owner_of(found) for found in (await home.objects()).values()}
        return owners == {keep} and home.store_keys() == home.store_keys(keep)

    await until(one_is_left, "all others are gone", PATIENCE_SECONDS)
    await until(no_orphans, "0 orphans", PATIENCE_SECONDS)
    assert home.document(keep) is not None


async def at_once(works: Sequence[Callable[[], Awaitable[Any]]]) -> None:
    """CLIENTS at a time."""
    rest = iter(works)

    async def one_after_another() -> None:
        for work in rest:
            await work()

    await asyncio.gather(*(one_after_another() for _ in range(CLIENTS)))


async def resources(home: Any) -> list[Object]:
    return list((await home.kube.list(RESOURCE, "", home.namespace))[0])


def is_settled(found: Object) -> bool:
    status = found.get("status", {})
    told = {one["type"]: one["status"] for one in status.get("conditions", ())}
    if status.get("observedGeneration") != found["metadata"]["generation"]:
        return False
    # The second comes when Kubernetes has looked at the Deployment: news, which a restart would find and write.
    return (told.get("TenantsProgrammed"), told.get("Progressing")) == ("True", "False")


def owner_of(found: Object) -> str:
    meta = found["metadata"]
    return str(meta.get("labels", {}).get("inferengine.dev/deployment", meta["name"]))
