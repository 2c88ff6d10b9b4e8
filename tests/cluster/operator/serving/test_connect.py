"""`inferengine connect` as a tenant's people use it: with the example's rights alone, where Services' names mean nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pty
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from infer_operator.kube import POD
from infer_server.client import Client

pytestmark = pytest.mark.our_cluster

RIGHTS = Path(__file__).parents[4] / "manifests/examples/rbac/tenant.yaml"
CONNECT = [sys.executable, "-m", "infer_server.commands", "connect"]
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 120

IN_A_POD = """
import contextlib, io
from infer_operator.connect.command import connect
out, told = io.StringIO(), io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
    connect(["quickstart", "--tenant=acme", "--max-tokens=8", "--", "Say hello."])
print(json.dumps({"text": out.getvalue(), "told": told.getvalue()}))
"""

Kubectl = Callable[..., str]


@pytest.fixture
def jane(kubectl: Kubectl, home: Any, tmp_path: Path) -> Path:
    """A kubeconfig of somebody in the group acme, which has the example's rights. A plugin gives her certificate."""
    kubectl("apply", "--namespace", home.namespace, "--filename", str(RIGHTS))
    key, request = tmp_path / "key", tmp_path / "request"
    command = ["openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=jane/O=acme"]
    subprocess.run([*command, "-keyout", key, "-out", request], check=True, capture_output=True)
    certificate = signed(kubectl, request.read_bytes())
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"clientCertificateData": certificate, "clientKeyData": key.read_text()},
    }
    (tmp_path / "credential").write_text(json.dumps(credential))
    config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    plugin = {"apiVersion": credential["apiVersion"], "command": "cat", "args": [str(tmp_path / "credential")]}
    config["users"] = [{"name": "jane", "user": {"exec": plugin | {"interactiveMode": "Never"}}}]
    config["contexts"][0]["context"] |= {"user": "jane", "namespace": home.namespace}
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


def signed(kubectl: Kubectl, request: bytes) -> str:
    name = f"jane-{secrets.token_hex(4)}"
    spec = {
        "request": base64.b64encode(request).decode(),
        "signerName": "kubernetes.io/kube-apiserver-client",
        "usages": ["client auth"],
    }
    kind = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest"}
    kubectl("create", "--filename", "-", given=kind | {"metadata": {"name": name}, "spec": spec})
    kubectl("certificate", "approve", name)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := kubectl("get", "csr", name, "--output=jsonpath={.status.certificate}")):
        assert time.monotonic() < deadline, "the certificate is not signed"
        time.sleep(POLL_SECONDS)
    kubectl("delete", "csr", name)
    return base64.b64decode(found).decode()


async def run(kubeconfig: Path, *arguments: str) -> tuple[str, str]:
    """Output, and what it told."""
    process = await asyncio.create_subprocess_exec(
        *CONNECT,
        *arguments,
        env=os.environ | {"KUBECONFIG": str(kubeconfig)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, told = await process.communicate()
    return out.decode(), told.decode()


class Terminal:
    """A command at a terminal; somebody types, and reads what comes."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self._process = process
        self._unread = ""

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    async def read_until(self, pattern: str) -> str:
        """What came before the pattern, and the pattern."""
        return await asyncio.to_thread(self._read_until, pattern)

    def _read_until(self, pattern: str) -> str:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := re.search(pattern, self._unread)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self._unread!r}"
            if select.select([self._descriptor], [], [], POLL_SECONDS)[0]:
                self._unread += os.read(self._descriptor, 65536).decode(errors="replace")
        read, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return read


@contextmanager
def at_a_terminal(kubeconfig: Path, *arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    environment = os.environ | {"KUBECONFIG": str(kubeconfig), "TERM": "dumb"}
    # Whoever runs the tests in the background has it ignore interrupts; a terminal's commands don't.
    command = ["env", "--default-signal=INT", *CONNECT, *arguments]
    process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        yield Terminal(ours, process)
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


async def test_a_tenants_people_connect_with_the_rights_of_the_example(
    serving: Any, operator: Any, jane: Path, kubectl: Kubectl, tmp_path: Path
) -> None:
    await serving.start()
    (pod,) = [pod["metadata"]["name"] for pod in await serving.pods()]

    answer, told = await run(jane, "quickstart", "--tenant=acme", "--max-tokens=8", "--", "Say hello.")
    assert answer.strip()
    assert f"connected to pod {pod}\n" in told

    _, told = await run(jane, "quickstart", "--tenant=globex", "--", "Say hello.")
    assert f"you may not get secrets/quickstart.globex in namespace {serving.home.namespace}" in told
    _, told = await run(jane, "--tenant=acme", "--", "Say hello.")
    assert "you may not list inferencedeployments.inferengine.dev" in told

    await the_chat_outlives_a_pod(serving, jane)
    await a_library_uses_the_forwarded_port(jane, tmp_path / "acme.json")
    await a_pod_needs_no_forwarding(serving, kubectl)

    await serving.edit(tenants=[{"name": "acme", "suspend": True}, {"name": "globex"}])
    told = "tenant_suspended"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "tenant_suspended" in told:  # a pod tells those who wait before it closes the endpoint
        assert time.monotonic() < deadline
        _, told = await run(jane, "quickstart", "--tenant=acme", "--", "Say hello.")
    assert "has no endpoint for tenant 'acme' on port" in told
    _, told = await run(Path(os.environ["KUBECONFIG"]), "--tenant=acme", f"-n{serving.home.namespace}", "--", "Hello.")
    assert "tenant 'acme' of quickstart is suspended" in told


async def the_chat_outlives_a_pod(serving: Any, jane: Path) -> None:
    with at_a_terminal(jane, "quickstart", "--tenant=acme", "--max-tokens=400", "--temperature=0") as terminal:
        await terminal.read_until("you> ")
        terminal.type("Tell me a long story about a lighthouse.\n")
        await terminal.read_until(r"connected to pod \S+\r?\n.{10}")
        (pod,) = await serving.pods()
        await serving.home.delete(POD, pod["metadata"]["name"])
        await terminal.read_until("inferengine chat: (connection_lost|draining): ")
        await terminal.read_until("you> ")
        await serving.is_ready()
        terminal.type("Say hello.\n")
        answer = await terminal.read_until(r"\[\d+ prompt tokens")
        (other,) = await serving.pods()
        assert other["metadata"]["uid"] != pod["metadata"]["uid"]
        assert f"connected to pod {other['metadata']['name']}" in answer
        await terminal.read_until("you> ")
        terminal.type("\x04")


async def a_library_uses_the_forwarded_port(jane: Path, file: Path) -> None:
    with at_a_terminal(jane, "quickstart", "--tenant=acme", "--forward", "--save", str(file)) as terminal:
        told = await terminal.read_until("Ctrl-C ends it")
        assert (found := re.search(r"Forwarding (tcp://127\.0\.0\.1:\d+) to quickstart for acme", told))
        assert await asyncio.to_thread(asked_with, file) == (0o600, found[1])
        terminal.interrupt()


def asked_with(file: Path) -> tuple[int, str]:
    """Mode and endpoint of the credentials file with which an answer came."""
    with Client.from_credentials(file) as client:
        assert client.generate("Hello", max_tokens=4).usage.output_tokens > 0
    return file.stat().st_mode & 0o777, json.loads(file.read_text())["endpoint"]


async def a_pod_needs_no_forwarding(serving: Any, kubectl: Kubectl) -> None:
    """In the cluster, as the pod's own account: the Service's name leads there."""
    namespace = serving.home.namespace
    group = f"system:serviceaccounts:{namespace}"
    role = yaml.safe_load(RIGHTS.read_text().split("---")[0])["metadata"]["name"]
    kubectl("create", "rolebinding", "pods", f"--role={role}", f"--group={group}", f"--namespace={namespace}")
    (said,) = await (await serving.client(["acme"], IN_A_POD)).ended()
    assert said["text"].strip()
    assert "connected to pod" not in said["told"]
