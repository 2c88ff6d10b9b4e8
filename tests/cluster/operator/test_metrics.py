"""What the operator tells of itself while it works: each figure is compared with what was done."""

from __future__ import annotations

import asyncio
from typing import Any

from infer_operator.kube import CHILDREN, POD, RESOURCE, SECRET

PREFIX = "inferengine_operator"
SILENCE_SECONDS = 150
"""A bookmark comes each minute."""


async def read(operator: Any) -> dict[str, float]:
    return dict(await asyncio.to_thread(operator.metrics))


def of_kinds(metrics: dict[str, float], name: str) -> dict[str, float]:
    start = f'{PREFIX}_{name}{{kind="'
    return {key.removeprefix(start)[:-2]: value for key, value in metrics.items() if key.startswith(start)}


async def test_what_it_did_is_what_it_tells(home: Any, operator: Any, until: Any) -> None:
    before = await read(operator)
    assert before[f"{PREFIX}_leader"] == 1
    assert of_kinds(before, "applies_sent_total") == {}
    await home.apply("d", "acme", "globex")
    await home.settled("d")
    await home.quiet()

    async def idle() -> dict[str, float] | None:
        found = await read(operator)
        return found if found[f"{PREFIX}_queue_depth"] == found[f"{PREFIX}_queue_oldest_seconds"] == 0 else None

    first = await until(idle, "nothing waits")
    sent = of_kinds(first, "applies_sent_total")
    found = [title.partition("/")[0] for title in await home.objects()]
    made = {kind.name: found.count(kind.name) for kind in CHILDREN if kind.name in found}
    assert sent.keys() == made.keys()
    assert all(sent[kind] >= number for kind, number in made.items())
    assert first[f'{PREFIX}_reconcile_seconds_count{{result="done"}}'] >= 1

    await home.kube.merge(RESOURCE, home.namespace, "d", {"metadata": {"annotations": {"look": "again"}}})

    async def looked() -> dict[str, float] | None:
        now = await read(operator)
        skipped, earlier = of_kinds(now, "applies_skipped_total"), of_kinds(first, "applies_skipped_total")
        return now if skipped.get("Service", 0) > earlier.get("Service", 0) else None

    second = await until(looked, "another look")
    assert of_kinds(second, "applies_sent_total") == sent
    ages = of_kinds(second, "watch_age_seconds")
    assert {kind.name for kind in (*CHILDREN, POD)} <= ages.keys()
    assert max(age for kind, age in ages.items() if kind != RESOURCE.name) < SILENCE_SECONDS


async def test_a_resource_that_waits_is_no_failure(home: Any, operator: Any, until: Any) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "unreachable", "namespace": home.namespace},
        "stringData": {"url": "redis://127.0.0.1:1"},
    }
    await home.kube.create(secret, SECRET)
    await home.apply("d", "acme", quotaStore={"urlSecretRef": {"name": "unreachable", "key": "url"}})

    async def waits() -> dict[str, float] | None:
        found = await read(operator)
        return found if found.get(f'{PREFIX}_reconcile_seconds_count{{result="waiting"}}', 0) >= 2 else None

    found = await until(waits, "it waits for its store")
    assert f'{PREFIX}_reconcile_seconds_count{{result="failed"}}' not in found
    assert found.get(f'{PREFIX}_resources{{ready="False"}}') == 1
