"""Port allocation: who gets which port, and which ports nobody may get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_operator.endpoints import PORTS, PortsExhaustedError, allocate

SMALL = range(100, 120)
ports = st.sets(st.sampled_from(SMALL))


@given(
    newcomers=st.lists(st.text("abc", min_size=1), unique=True, max_size=8),
    taken=ports,
    busy=ports,
    retired=st.dictionaries(st.sampled_from(SMALL), st.floats(0, 100)),
    now=st.floats(0, 100),
)
def test_ports_are_distinct_and_free(
    newcomers: list[str], taken: set[int], busy: set[int], retired: dict[int, float], now: float
) -> None:
    usable = {port for port in SMALL if port not in taken | busy and retired.get(port, 0) <= now}
    if len(usable) < len(newcomers):
        with pytest.raises(PortsExhaustedError):
            allocate(newcomers, taken, retired, lambda port: port not in busy, now, SMALL)
        return
    given_out = allocate(newcomers, taken, retired, lambda port: port not in busy, now, SMALL)
    assert list(given_out) == newcomers
    assert len(set(given_out.values())) == len(newcomers)
    assert set(given_out.values()) <= usable
    assert list(given_out.values()) == sorted(usable)[: len(newcomers)]


def test_the_default_range() -> None:
    assert (PORTS[0], PORTS[-1]) == (20000, 20999)
    assert allocate(["acme"], [20000], {}, lambda port: True, 0) == {"acme": 20001}


def test_a_retired_port_comes_back_when_its_time_has_come() -> None:
    assert allocate(["a"], [], {100: 50.0}, lambda port: True, 49.9, SMALL) == {"a": 101}
    assert allocate(["a"], [], {100: 50.0}, lambda port: True, 50.0, SMALL) == {"a": 100}


def test_only_candidates_are_claimed() -> None:
    asked: list[int] = []

    def claim(port: int) -> bool:
        asked.append(port)
        return port != 101

    assert allocate(["a"], [100], {}, claim, 0, SMALL) == {"a": 102}
    assert asked == [101, 102]


def test_exhaustion_says_what_is_wrong() -> None:
    with pytest.raises(PortsExhaustedError) as error:
        allocate(["late"], SMALL, {}, lambda port: True, 0, SMALL)
    assert str(error.value) == (
        "no port for tenant late: all of 100-119 are taken, in use, or were given back less than 10 minutes ago"
    )
