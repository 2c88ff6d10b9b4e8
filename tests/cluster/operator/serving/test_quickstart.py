"""The quickstart on a real pod: two tenants get tokens by their Services' names, and edits reach them while the pod stays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infer_operator.kube import DEPLOYMENT, RESOURCE

pytestmark = pytest.mark.our_cluster

PROMPT = "The capital of France is"


async def test_quickstart_serves_two_tenants(serving: Any, operator: Any) -> None:
    home = serving.home
    spec = await serving.start()
    generation = (await home.get(DEPLOYMENT, "quickstart"))["metadata"]["generation"]
    (pod,) = await serving.pods()

    first, second = await serving.ask("acme", PROMPT * 20, 2)
    assert first["text"] == second["text"]
    assert (first["cached"], second["cached"] > 50) == (0, True)
    (other,) = await serving.ask("globex", PROMPT * 20)
    assert other["text"] == first["text"]
    assert other["cached"] == 0  # nothing of another tenant's cache

    initech = {"name": "initech", "quota": {"requestsPerMinute": 1}}
    await serving.edit(tenants=[initech, *spec["tenants"]])
    added = await serving.ask("initech", PROMPT, 2)
    assert "text" in added[0]
    assert added[1]["code"].startswith("quota_")

    keys = await home.secret("quickstart.initech")
    await serving.edit(tenants=[tenant | {"suspend": tenant["name"] == "acme"} for tenant in spec["tenants"]])
    served, suspended, removed = await asyncio.gather(
        serving.ask("globex", PROMPT),
        serving.ask("acme", PROMPT, patience=3),
        serving.ask("initech", PROMPT, given=keys, patience=3),
    )
    assert "text" in served[0]
    # The endpoint stays open a second longer, to tell those who are connected why; then nobody listens there.
    assert suspended[0]["code"] in ("tenant_suspended", "connection_lost")
    assert removed[0]["code"] in ("tenant_removed", "connection_lost")

    (same,) = await serving.pods()
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    assert (await home.get(DEPLOYMENT, "quickstart"))["metadata"]["generation"] == generation

    await home.delete(RESOURCE, "quickstart")
    await home.gone("quickstart")
    assert home.store_keys() == set()
