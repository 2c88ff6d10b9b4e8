"""Ports of tenant endpoints: who needs one and which are taken in, who gets which out. Pure, but for `claim`.

On a cluster also slots: ready pods in, the slots of each out. Pure.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Mapping

PORTS = range(20000, 21000)
QUARANTINE_SECONDS = 600.0
"""How long the port of a tenant that left stays unused: its clients go on connecting to it for a while."""


class PortsExhaustedError(Exception):
    """No port is left: remove tenants, wait until retired ports are free, or end what uses them."""


def allocate(
    newcomers: Iterable[str],
    taken: Iterable[int],
    retired: Mapping[int, float],
    claim: Callable[[int], bool],
    now: float,
    ports: range = PORTS,
) -> dict[str, int]:
    """The lowest free port for each newcomer, in their order.

    A port is free if no tenant has it (`taken`), its time in `retired` (port -> Unix time) has come, and `claim`, asked
    last, gets it. What was claimed before PortsExhaustedError is raised stays claimed.
    """
    held = set(taken)
    candidates = (port for port in ports if port not in held and retired.get(port, now) <= now and claim(port))
    given: dict[str, int] = {}
    for name in newcomers:
        port = next(candidates, None)
        if port is None:
            raise PortsExhaustedError(
                f"no port for tenant {name}: all of {ports.start}-{ports.stop - 1} are taken, in use, or were given back "
                f"less than {QUARANTINE_SECONDS / 60:.0f} minutes ago"
            )
        given[name] = port
    return given


# --- slots: which pods a tenant's Service leads to ----------------------------------------------------------------------
SLOTS = 64
PODS_PER_SLOT = 2


def slot_of(tenant_uid: str) -> int:
    """The same for a tenant's whole life, spread evenly over all slots."""
    return int.from_bytes(_hash(tenant_uid)) % SLOTS


def assign_slots(pods: Iterable[str], pods_per_slot: int = PODS_PER_SLOT) -> dict[str, frozenset[int]]:
    """Each ready pod's slots, by its uid: rendezvous hashing (Thaler and Ravishankar, 1998).

    A slot's pods are the `pods_per_slot` of the highest hash of slot and pod. So a pod that comes or goes changes only the slots
    that it has; all other tenants stay where their caches are. The answer depends on the set alone, not on its order.
    """
    ready = sorted(set(pods))
    slots: dict[str, set[int]] = {pod: set() for pod in ready}
    for slot in range(SLOTS):
        for pod in heapq.nlargest(pods_per_slot, ready, key=lambda pod: _hash(f"{slot}/{pod}")):
            slots[pod].add(slot)
    return {pod: frozenset(numbers) for pod, numbers in slots.items()}


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
