"""Pods go while clients stream: each answer comes whole in the end, what fails is worth a retry, every token is paid once."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from redis import Redis

from infer_operator.builders.manifest import HTTP_PORT
from infer_operator.kube import POD, Object
from infer_server.contract.keys import tenant_key
from infer_server.quota import QuotaStore
from infer_server.quota.reservation import Usage

pytestmark = pytest.mark.our_cluster

TENANTS = ("acme", "globex")
THREADS = 3
"""of each tenant"""
TOKENS = 24
ROUNDS = 10 if os.environ.get("INFERENGINE_TEST_PROFILE") == "soak" else 1
LEASE_SECONDS = 150.0
"""A killed pod's reservations: 60 s of the lease, 60 s in which a settlement may still come, and then some."""

# Each thread asks until somebody was disturbed, and then for two whole answers more.
LOAD = """
import threading, time
threads, tokens, *tenants = sys.argv[1:]
disturbed = threading.Event()
lock = threading.Lock()

def say(**line):
    with lock:
        print(json.dumps(line), flush=True)

def ask(client, tenant, question):
    got = 0
    try:
        stream = client.stream(question, max_tokens=int(tokens), temperature=0, ignore_eos=True, timeout=60)
        for delta in stream:
            got += len(delta.token_ids)
    except Retryable as error:
        say(tenant=tenant, tokens=got, retry=error.code)
        disturbed.set()
        time.sleep(error.retry_ms / 1000)
        return False
    except InferError as error:
        say(tenant=tenant, tokens=got, failed=str(error))
        os._exit(0)
    say(tenant=tenant, tokens=got, paid=stream.usage.prompt_tokens + stream.usage.output_tokens)
    return True

def run(client, tenant, thread):
    left = 2
    while left:
        late = disturbed.is_set()
        while not ask(client, tenant, f"Thread {thread} tells a story:"):
            pass
        left -= late

clients = {tenant: connect(tenant) for tenant in tenants}
for tenant, client in clients.items():
    for thread in range(int(threads)):
        threading.Thread(target=run, args=(client, tenant, thread)).start()
"""


async def test_pods_are_deleted_and_killed_under_load(serving: Any, operator: Any, until: Any, is_soak: bool) -> None:
    await serving.start(replicas=2, tenants=[{"name": name} for name in TENANTS])
    told: list[Any] = []
    for _ in range(ROUNDS):
        told += await under_load(serving, until, delete)
        for name in TENANTS:
            await until(lambda name=name: is_settled(serving, name), f"nothing of {name} is reserved")
            await check_payment(serving, name, told)
    for _ in range(ROUNDS):
        told += await under_load(serving, until, kill)
        for name in TENANTS:
            await check_payment(serving, name, told)
    if is_soak:  # nobody settles for a killed pod: its leases have to expire
        for name in TENANTS:
            await until(lambda name=name: is_settled(serving, name), f"nothing of {name} is reserved", LEASE_SECONDS)
            await check_payment(serving, name, told)


async def under_load(serving: Any, until: Any, lose: Any) -> list[Any]:
    """What the tenants' clients saw while a pod that serves them was lost in the midst of it."""
    load = await serving.client(TENANTS, LOAD, str(THREADS), str(TOKENS), *TENANTS)

    async def is_served() -> bool:
        return {line["tenant"] for line in await load.lines()} == set(TENANTS)

    await until(is_served, f"{load.name} is being served")
    victim = await until(lambda: busiest(serving), "a pod at work")
    await lose(serving, victim)
    lines: list[Any] = await load.ended()
    assert [line for line in lines if "failed" in line] == []
    assert {line["tokens"] for line in lines if "paid" in line} == {TOKENS}
    refusals = {line["retry"] for line in lines if "retry" in line}
    assert refusals <= {"connection_lost", "draining"}, refusals
    await until(lambda: is_replaced(serving, victim), "another pod, or the same one anew, serves")
    return lines


async def busiest(serving: Any) -> Object | None:
    """The pod with most requests under way."""
    pods = await serving.pods()
    numbers = await asyncio.gather(*(asyncio.to_thread(requests_under_way, pod) for pod in pods))
    number, _, found = max(zip(numbers, range(len(pods)), pods, strict=True))
    return found if number else None


def requests_under_way(pod: Object) -> float:
    with urlopen(f"http://{pod['status']['podIP']}:{HTTP_PORT}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("inferengine_active_requests{"))


async def delete(serving: Any, pod: Object) -> None:
    meta = pod["metadata"]
    await serving.home.kube.delete(POD, serving.home.namespace, meta["name"], meta["uid"])


async def kill(serving: Any, pod: Object) -> None:
    """All its processes at once, as when memory runs out; the kubelet starts the container again."""
    processes = await asyncio.to_thread(processes_of, pod["metadata"]["uid"])
    assert processes
    for number in processes:
        os.kill(number, signal.SIGKILL)


def processes_of(uid: str) -> list[int]:
    name = uid.replace("-", "_")  # one driver of control groups writes it so, the other as it is
    return [int(path.parts[2]) for path in Path("/proc").glob("[0-9]*/cgroup") if is_of_pod(path, name)]


def is_of_pod(cgroup: Path, name: str) -> bool:
    try:
        return (
            name in cgroup.read_text().replace("-", "_") and b"infer_server" in (cgroup.parent / "cmdline").read_bytes()
        )
    except OSError:  # it has ended meanwhile
        return False


async def is_replaced(serving: Any, victim: Object) -> bool:
    """Two pods are ready, and the victim is gone or was started once more."""
    pods = await serving.pods()
    restarts = {
        pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"]
        for pod in pods
        if all(one["status"] == "True" for one in pod["status"]["conditions"] if one["type"] == "Ready")
    }
    return len(restarts) == 2 and restarts.get(victim["metadata"]["uid"]) != 0


async def usage(serving: Any, tenant: str) -> Usage:
    async with QuotaStore.open(serving.home.url) as store:
        await store.sweep(tenant_id(serving, tenant))
        return await store.usage(tenant_id(serving, tenant))


def tenant_id(serving: Any, tenant: str) -> str:
    return f"{serving.home.namespace}/quickstart/{tenant}"


async def is_settled(serving: Any, tenant: str) -> bool:
    found = await usage(serving, tenant)
    return (found.live, found.held, found.day.reserved, found.month.reserved) == (0, 0, 0, 0)


async def check_payment(serving: Any, tenant: str, told: list[Any]) -> None:
    """Each reservation is closed once or still held, never both; used is the sum of what was charged for.

    It is not less than the whole answers cost, and not more than all answers would have.
    """
    id = tenant_id(serving, tenant)
    with Redis.from_url(serving.home.url, decode_responses=True) as redis:
        closed = [fields for _, fields in redis.xrange(tenant_key(id, "audit"))]
        still_open = redis.zrange(tenant_key(id, "leases"), 0, -1)
    ids = [entry["id"] for entry in closed]
    assert len(ids) == len(set(ids))
    assert not set(ids) & set(still_open)
    found = await usage(serving, tenant)
    assert found.month.used == sum(int(entry["charged"]) for entry in closed)
    prices = [line["paid"] for line in told if line["tenant"] == tenant and "paid" in line]
    lost = sum(1 for line in told if line["tenant"] == tenant and "retry" in line)
    assert sum(prices) <= found.month.used <= sum(prices) + lost * max(prices)
    assert found.month.reserved == len(still_open) * max(prices)
