"""Ports of tenant endpoints: who needs one and which are taken in, who gets which out. Pure, but for `claim`."""

from __future__ import annotations

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
