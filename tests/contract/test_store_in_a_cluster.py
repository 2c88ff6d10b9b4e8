"""The embedded store of a cluster: the server's program with the users that the operator's Secret names.

Pods and operator can do all that they do, over the password in the URL; nobody else can do anything.
"""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, exceptions

from infer_operator import spec
from infer_operator.builders import secret
from infer_operator.state import Resource
from infer_server.contract.document import DesiredState, QuotaLimits, TenantEntry, Version
from infer_server.contract.report import make_report
from infer_server.contract.store import DocumentStore
from infer_server.contract.sweep import StoreSweep
from infer_server.quota import QuotaStore

PATIENCE = 20.0
RESOURCE = Resource(
    uid="u",
    generation=1,
    deployment=spec.convert(
        {
            "apiVersion": "inferengine.dev/v1alpha1",
            "kind": "InferenceDeployment",
            "metadata": {"name": "d", "namespace": "team"},
            "spec": {"model": {"uri": "/m", "name": "m"}, "tenants": [{"name": "acme"}]},
        }
    ),
)
KEYS = secret.mint_keys()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("store")
    data = secret.keys_secret(RESOURCE, KEYS)["data"]
    acl = directory / "store.acl"
    acl.write_bytes(base64.b64decode(data[secret.STORE_ACL]))
    port = free_port()
    options = [f"--directory={directory / 'data'}", f"--port={port}", f"--acl-file={acl}"]
    process = subprocess.Popen([sys.executable, "-m", "infer_server.quota.networked", *options], stdout=sys.stderr)
    address = base64.b64decode(data[secret.STORE_URL]).decode().replace("d-store.team.svc:6379", f"127.0.0.1:{port}")
    try:
        wait_until_it_answers(address)
        yield address
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


def wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    with Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except exceptions.ConnectionError:
                assert time.monotonic() < deadline, "the store does not answer"
                time.sleep(0.02)


async def test_everything_that_pods_and_operator_do(url: str) -> None:
    documents = DocumentStore(url, "team", "d")
    tenant = TenantEntry(
        name="acme", uid="t", port=20000, public_keys=("k" * 40,), quota=QuotaLimits(tokens_per_day=50)
    )
    version = Version(uid="u", generation=1, revision=1)
    document = DesiredState(version=version, namespace="team", deployment="d", tenants=(tenant,))
    await documents.write(document, expected_revision=0)
    followed = documents.follow()
    assert await anext(followed) == document
    await followed.aclose()
    await documents.report("p", make_report(version, []))
    assert await documents.reports(["p", "q"]) == {"p": make_report(version, []), "q": None}
    await documents.close()
    async with QuotaStore.open(url, timeout_seconds=5) as store:
        reservation = await store.reserve("team/d/acme", "r1", prompt_tokens=20, max_tokens=10)
        await reservation.settle(computed_tokens=20, cached_tokens=0, output_tokens=5)
    sweep = StoreSweep(url, "operator")
    await sweep.register("team", "d")
    assert await sweep.purge("team", "d") > 1
    await sweep.close()


@pytest.mark.parametrize(
    "command",
    [
        ("CONFIG", "GET", "*"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("FUNCTION", "FLUSH"),
        ("FUNCTION", "DELETE", "x"),
        ("SCRIPT", "FLUSH"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("REPLICAOF", "example.test", "1"),
        ("SET", "elsewhere", "1"),
        ("GET", "elsewhere"),
        ("SUBSCRIBE", "elsewhere"),
    ],
    ids=" ".join,
)
def test_what_its_user_may_not_do(url: str, command: tuple[str, ...]) -> None:
    with Redis.from_url(url) as client, pytest.raises(exceptions.NoPermissionError):
        client.execute_command(*command)


@pytest.mark.parametrize("user", ["", "inferengine:wrong@", "default:@", "other:x@"])
def test_nobody_else_gets_in(url: str, user: str) -> None:
    address = f"redis://{user}{url.rpartition('@')[2]}"
    with (
        Redis.from_url(address) as client,
        pytest.raises((exceptions.AuthenticationError, exceptions.NoPermissionError)),
    ):
        client.ping()


def test_without_its_users_it_does_not_start(tmp_path: Path) -> None:
    options: list[Any] = ["--directory", tmp_path / "data", "--port", "1", "--acl-file", tmp_path / "missing"]
    done = subprocess.run(
        [sys.executable, "-m", "infer_server.quota.networked", *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert "missing is not there: without it anybody could connect" in done.stderr
