"""The quickstart on a real pod: two tenants get tokens by their Services' names, and edits reach them while the pod stays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infer_operator.keys import curve_pair
from infer_operator.kube import DEPLOYMENT, RESOURCE
from infer_server.client import Client

pytestmark = pytest.mark.our_cluster

NODE_ADDRESS = "10.200.0.1"
PROMPT = "The capital of France is"


async def from_outside(serving: Any, until: Any, tenant: str, tenants: list[dict[str, Any]]) -> str:
    """What a client gets that is no pod: by a port of the node, and with a key of its own, which is in no Secret."""
    public, secret = curve_pair()
    own = [one | ({"auth": {"publicKeys": [public]}} if one["name"] == tenant else {}) for one in tenants]
    await serving.edit(tenants=own, endpoints={"serviceType": "NodePort", "advertisedHost": NODE_ADDRESS})

    async def look() -> dict[str, str] | None:
        found: dict[str, str] = await serving.home.secret(f"quickstart.{tenant}")
        return found if found["endpoint"].startswith(f"tcp://{NODE_ADDRESS}:") else None

    told = await until(look, "the Secret names the node's port")
    assert told.keys() == {"endpoint", "serverPublicKey"}

    def ask() -> str:
        with Client(
            endpoint=told["endpoint"],
            server_public_key=told["serverPublicKey"],
            client_public_key=public,
            client_secret_key=secret,
            connect_timeout=60,
        ) as client:
            return client.generate(PROMPT, max_tokens=8, temperature=0).text

    return await asyncio.to_thread(ask)


async def test_quickstart_serves_two_tenants(serving: Any, operator: Any, until: Any) -> None:
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

    assert await from_outside(serving, until, "globex", spec["tenants"]) == served[0]["text"]
    (same,) = await serving.pods()
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    assert (await home.get(DEPLOYMENT, "quickstart"))["metadata"]["generation"] == generation

    await home.delete(RESOURCE, "quickstart")
    await home.gone("quickstart")
    assert home.store_keys() == set()
