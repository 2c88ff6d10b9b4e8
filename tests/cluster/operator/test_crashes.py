"""The operator is killed at any moment, and another takes over: no edit is lost, nothing is there twice, no key changes."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from typing import Any

from infer_operator.kube import LEASE, RESOURCE, SECRET, Kind, Object

SERVICE = Kind("Service", "v1", "services")
IS_SOAK = os.environ.get("INFERENGINE_TEST_PROFILE") == "soak"
KILLS = 60 if IS_SOAK else 10
SECONDS = 5.0 if IS_SOAK else 0.0
"""between two kills, under edits all the time"""
KILLS_PER_CHECK = 6 if IS_SOAK else 1
"""Between two checks nobody waits for anything."""
NAMES = ("a", "a-b", "quickstart")
TENANTS = ("acme", "b-c", "c", "globex", "initech", "umbrella")


class Life:
    """Each tenant's uid and keys, from when it came to when it left, as its clients know them."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}

    def left(self, name: str, tenants: set[str]) -> None:
        self.keys = {
            (owner, tenant): kept for (owner, tenant), kept in self.keys.items() if owner != name or tenant in tenants
        }

    async def check(self, home: Any, name: str) -> None:
        for entry in home.entries(name).values():
            secret = await home.secret(f"{name}.{entry.name}")
            assert entry.public_keys == (secret["clientPublicKey"],), (name, entry.name)
            found = (entry.uid, secret["clientSecretKey"])
            assert self.keys.setdefault((name, entry.name), found) == found, (name, entry.name)


def edited(rng: random.Random, spec: Object) -> Object:
    """One edit of a user's: of tenants mostly."""
    tenants = list(spec["tenants"])
    present = {tenant["name"] for tenant in tenants}
    kind = rng.choice(("add", "add", "remove", "quota", "suspend", "engine"))
    if kind == "add" and (absent := [name for name in TENANTS if name not in present]):
        tenants.append({"name": rng.choice(absent)})
    elif kind == "remove" and len(tenants) > 1:
        tenants.pop(rng.randrange(len(tenants)))
    elif kind == "engine":
        return spec | {"engine": {"maxBatchSize": rng.randint(1, 64)}}
    else:
        index = rng.randrange(len(tenants))
        change = (
            {"suspend": rng.random() < 0.5} if kind == "suspend" else {"quota": {"tokensPerDay": rng.randint(1, 1000)}}
        )
        tenants[index] = tenants[index] | change
    return spec | {"tenants": tenants}


async def test_killed_again_and_again_under_edits(home: Any, operators: Any, until_leads: Any, until: Any) -> None:
    rng = random.Random(4)
    operator = operators()
    operator.start()
    await until_leads(operator)
    life = Life()
    specs: dict[str, Object] = {}
    for name in NAMES:
        await home.apply(name, "acme", "globex")
        specs[name] = home.manifest(name, "acme", "globex")["spec"]
        await home.settled(name)
        await life.check(home, name)
    edits = 0
    for number in range(1, KILLS + 1):
        edits += await edit(home, rng, life, specs)
        operator.kill()
        await free_the_lease(home)
        operator.start()
        if number % KILLS_PER_CHECK == 0:
            await until_leads(operator)
            for name in NAMES:
                await home.settled(name)
                await until(
                    lambda name=name: is_exact(home, name, specs[name]), f"{name} is exactly what was asked for"
                )
                await life.check(home, name)
    print(f"{KILLS} kills, {edits} edits")
    assert not [line for line in operator.log().splitlines() if "Traceback" in line]


async def edit(home: Any, rng: random.Random, life: Life, specs: dict[str, Object]) -> int:
    """A few edits, or as many as there is time for: how many."""
    began, wanted, done = time.monotonic(), rng.randint(2, 6), 0
    while done < wanted or time.monotonic() - began < SECONDS:
        name = rng.choice(NAMES)
        specs[name] = edited(rng, specs[name])
        await home.kube.merge(RESOURCE, home.namespace, name, {"spec": specs[name]})
        life.left(name, {tenant["name"] for tenant in specs[name]["tenants"]})
        await asyncio.sleep(rng.random() * 0.1)  # anywhere in its work
        done += 1
    return done


async def free_the_lease(home: Any) -> None:
    """What time does: a killed holder's lease expires after 15 s. Taking over is another test's."""
    lease = await home.get(LEASE, "inferengine-operator")
    await home.kube.replace(lease | {"spec": lease["spec"] | {"holderIdentity": ""}}, LEASE)


async def is_exact(home: Any, name: str, spec: Object) -> bool:
    """Each tenant once, as it was last edited, and nothing of those that left."""
    wanted = {tenant["name"]: tenant for tenant in spec["tenants"]}
    entries = home.entries(name)
    if list(entries) != list(wanted):
        return False
    for tenant, entry in entries.items():
        quota = wanted[tenant].get("quota", {}).get("tokensPerDay")
        if entry.suspended != wanted[tenant].get("suspend", False) or entry.quota.tokens_per_day != quota:
            return False
    ports = [entry.port for entry in entries.values()]
    assert len(ports) == len(set(ports))
    selector = f"inferengine.dev/deployment={name},inferengine.dev/tenant"
    for kind in (SERVICE, SECRET):
        items, _ = await home.kube.list(kind, selector, home.namespace)
        if sorted(item["metadata"]["labels"]["inferengine.dev/tenant"] for item in items) != sorted(wanted):
            return False
    config = await home.get(Kind("ConfigMap", "v1", "configmaps"), name)
    return f'"max_batch_size": {spec.get("engine", {}).get("maxBatchSize", 32)}' in config["data"]["pod.json"]


async def test_another_takes_over_from_a_killed_leader(home: Any, operators: Any, until_leads: Any, until: Any) -> None:
    leader, other = operators(), operators()
    leader.start()
    await until_leads(leader)
    other.start()
    await home.apply("d", "acme")
    await home.settled("d")
    assert not other.leads()
    leader.kill()
    await home.apply("d", "acme", "globex")
    await until_leads(other)
    await home.settled("d")
    assert "globex" in home.entries("d")


async def test_a_leader_that_is_told_to_stop_hands_over_at_once(home: Any, operators: Any, until_leads: Any) -> None:
    leader, other = operators(), operators()
    leader.start()
    await until_leads(leader)
    other.start()
    assert leader.stop() == 0
    assert (await home.get(LEASE, "inferengine-operator"))["spec"]["holderIdentity"] in ("", other_identity(other))
    await until_leads(other)
    assert other.stop() == 0


def other_identity(operator: Any) -> str:
    return f"{socket.gethostname()}-{operator._process.pid}"
