"""A real pod that can't serve says why, and the resource's status repeats it."""

from __future__ import annotations

from typing import Any

import pytest

from infer_operator.kube import RESOURCE

pytestmark = pytest.mark.our_cluster

NAME = "quickstart"
SECONDS = 120


async def test_a_pod_that_is_not_ready_says_why(serving: Any, operators: Any, until: Any, until_leads: Any) -> None:
    """Its processes run, so Kubernetes finds nothing wrong with it."""
    operator = operators(look_seconds=1)
    operator.start()
    await until_leads(operator)
    home = serving.home
    spec = serving.spec(model={"uri": "/nowhere", "name": "smol"})
    await home.kube.create(home.manifest(NAME) | {"spec": spec}, RESOURCE)

    async def told() -> dict[str, str] | None:
        found = (await home.get(RESOURCE, NAME)).get("status", {}).get("conditions", ())
        messages = {one["type"]: one["message"] for one in found}
        return messages if "/nowhere: no such directory" in messages.get("Available", "") else None

    messages = await until(told, "the status says what the pod says", SECONDS)
    (pod,) = await serving.pods()
    line = f"pod {pod['metadata']['name']}: the model is not loaded: /nowhere: no such directory"
    for type in ("Available", "Progressing", "ModelReady"):
        assert line in messages[type]
    assert home.conditions(await home.get(RESOURCE, NAME))["Ready"] == "False"
