"""A namespace on the cluster, `kubectl`, and pods that run this clone's software.

These tests run by `make test-cluster`, which sets INFERENGINE_TEST_CLUSTER; elsewhere none is collected, so none is
reported as skipped. With a cluster of the user's own, those that need our node or kwok's are left out.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if os.environ.get("INFERENGINE_TEST_CLUSTER") else ["test_*.py"]

OUR_KUBECONFIG = "/var/lib/inferengine-cluster/kubeconfig"
POLL_SECONDS = 0.2
# As strict as the "restricted" standard, but for the hostPath volumes that hostpy is made of.
RESTRICTED_POD = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

Manifest = dict[str, Any]
Kubectl = Callable[..., str]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "our_cluster: needs the cluster that `make cluster` starts")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("KUBECONFIG") == OUR_KUBECONFIG:
        return
    left_out = [item for item in items if item.get_closest_marker("our_cluster")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """`kubectl("get", "pods")`: its output. What it says on failure is the exception's message."""

    def call(*arguments: str, given: Manifest | None = None) -> str:
        done = subprocess.run(
            ["kubectl", *arguments], input=json.dumps(given) if given else None, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    return call


@pytest.fixture(scope="module")
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace for one file's tests. Its deletion goes on after them: no other test uses its name."""
    name = f"test-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def pod_fragment() -> Manifest:
    """How a pod comes by this clone's software: hostpy.py's output, or CLUSTER_POD's content in the same form."""
    given = os.environ.get("CLUSTER_POD")
    if given:
        content = Path(given).read_text()
    else:
        content = subprocess.check_output([sys.executable, Path(__file__).with_name("hostpy.py")], text=True)
    fragment: Manifest = json.loads(content)
    return fragment


@pytest.fixture
def python_pod(namespace: str, pod_fragment: Manifest) -> Callable[..., Manifest]:
    """`python_pod(name, ["-c", code])`: a pod that runs Python with our software, non-root, on a read-only root."""

    def build(name: str, arguments: Sequence[str], **container: Any) -> Manifest:
        main = pod_fragment["container"] | {
            "name": "main",
            "command": [pod_fragment["python"], *arguments],
            "securityContext": RESTRICTED_CONTAINER,
            **container,
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": False,
                "securityContext": RESTRICTED_POD,
                "nodeSelector": pod_fragment.get("nodeSelector", {}),
                "volumes": pod_fragment.get("volumes", []),
                "containers": [main],
            },
        }

    return build


@pytest.fixture
def run_in_pod(kubectl: Kubectl, namespace: str, python_pod: Callable[..., Manifest]) -> Callable[..., str]:
    """`run_in_pod("-c", code)`: what Python with these arguments printed in a pod of its own, once it has succeeded."""

    def run(*arguments: str) -> str:
        name = f"run-{secrets.token_hex(4)}"
        kubectl("apply", "-f", "-", given=python_pod(name, arguments))
        phase = ""
        deadline = time.monotonic() + 120
        while phase not in ("Succeeded", "Failed"):
            if time.monotonic() > deadline:
                raise TimeoutError(kubectl("describe", "pod", name, "--namespace", namespace))
            time.sleep(POLL_SECONDS)
            phase = kubectl("get", "pod", name, "--namespace", namespace, "--output", "jsonpath={.status.phase}")
        output = kubectl("logs", name, "--namespace", namespace)
        assert phase == "Succeeded", output
        return output

    return run
