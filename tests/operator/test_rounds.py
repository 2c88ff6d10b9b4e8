"""Resources in, looks at them out: each in its turn, no faster than the API server is to be asked."""

from __future__ import annotations

import pytest

from infer_operator.kube import Object
from infer_operator.rounds import SECRETS_PER_SECOND, Rounds
from infer_operator.state import Key
from infer_operator.workqueue import Lane


def resource(name: str, num_tenants: int = 1) -> Object:
    tenants = [{"name": f"t{number}"} for number in range(num_tenants)]
    return {"metadata": {"namespace": "n", "name": name}, "spec": {"tenants": tenants}}


class EnoughError(Exception):
    pass


class Run:
    """Time passes when somebody sleeps."""

    def __init__(self, resources: list[Object], until: float) -> None:
        self.now = 0.0
        self.until = until
        self.looks: list[tuple[float, str]] = []
        self.rounds = Rounds(lambda: iter(resources), self._add, 30, self._sleep)

    def _add(self, key: Key, lane: Lane) -> None:
        assert lane is Lane.RESYNC
        self.looks.append((self.now, key.name))

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > self.until:
            raise EnoughError

    async def __call__(self) -> list[tuple[float, str]]:
        with pytest.raises(EnoughError):
            await self.rounds.run()
        return self.looks


def test_copies_of_secrets_count() -> None:
    """And the namespaces, which are asked whether they still allow them, once each."""
    copied = resource("a", num_tenants=2)
    for tenant in copied["spec"]["tenants"]:
        tenant["secretNamespaces"] = [f"n{number}" for number in range(16)]
    rounds = Rounds(lambda: (), lambda key, lane: None, seconds=0.0)
    assert rounds.pause(copied, 1) == (2 + 32 + 16 + 2) / SECRETS_PER_SECOND


async def test_each_has_its_turn_within_the_time() -> None:
    looks = await Run([resource(name) for name in "abc"], until=60)()
    assert looks == [(10, "a"), (20, "b"), (30, "c"), (40, "a"), (50, "b"), (60, "c")]


async def test_many_secrets_stretch_the_round() -> None:
    resources = [resource(str(number), num_tenants=20) for number in range(100)]
    looks = await Run(resources, until=3 * 100 * 22 / SECRETS_PER_SECOND + 0.1)()
    assert len(looks) == 300
    assert {name for _, name in looks[:100]} == {str(number) for number in range(100)}


async def test_resources_that_come_are_seen_with_the_next_round() -> None:
    resources: list[Object] = []
    run = Run(resources, until=125)
    run.rounds = Rounds(lambda: iter(resources), run._add, 30, lambda seconds: later(run, resources, seconds))
    assert [name for _, name in await run()] == ["late", "late"]


async def later(run: Run, resources: list[Object], seconds: float) -> None:
    if run.now >= 30 and not resources:
        resources.append(resource("late"))
    await run._sleep(seconds)
