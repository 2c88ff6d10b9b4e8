"""The test cluster itself: what every other test on it takes for granted."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import zmq

Manifest = dict[str, Any]
Kubectl = Callable[..., str]
RunInPod = Callable[..., str]
PORT = 5555

ECHO = f"""
import zmq
socket = zmq.Context().socket(zmq.REP)
socket.bind("tcp://0.0.0.0:{PORT}")
while True:
    socket.send(b"echo " + socket.recv())
"""

ASK = """
import zmq
socket = zmq.Context().socket(zmq.REQ)
socket.setsockopt(zmq.RCVTIMEO, 20_000)
socket.setsockopt(zmq.LINGER, 0)
socket.connect("tcp://{address}")
socket.send(b"hello")
print(socket.recv().decode())
"""


@pytest.fixture
def echo_service(kubectl: Kubectl, namespace: str, python_pod: Callable[..., Manifest]) -> str:
    """A ready pod that answers over ZeroMQ behind the Service `echo`. Gives the Service's cluster IP."""
    probe = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    kubectl("apply", "-f", "-", given=python_pod("echo", ["-c", ECHO], readinessProbe=probe))
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "echo", "namespace": namespace},
        "spec": {"selector": {"app": "echo"}, "ports": [{"port": PORT}]},
    }
    kubectl("apply", "-f", "-", given=service)
    kubectl("wait", "--namespace", namespace, "--for=condition=Ready", "pod/echo", "--timeout=120s")
    return kubectl("get", "service", "echo", "--namespace", namespace, "--output", "jsonpath={.spec.clusterIP}")


def test_every_node_is_ready(kubectl: Kubectl) -> None:
    nodes = json.loads(kubectl("get", "nodes", "--output", "json"))["items"]
    states = {
        node["metadata"]["name"]: condition["status"]
        for node in nodes
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready"
    }
    assert states
    assert set(states.values()) == {"True"}, states


def test_a_pod_imports_our_software(run_in_pod: RunInPod) -> None:
    assert run_in_pod("-c", "import infer_server, infer_operator, zmq; print('imported')") == "imported\n"


def test_a_pod_computes_with_torch(run_in_pod: RunInPod) -> None:
    assert run_in_pod("-c", "import infer_engine, torch; print(torch.ones(2, 2).sum().item())") == "4.0\n"


def test_our_command_runs_in_a_pod(run_in_pod: RunInPod) -> None:
    assert "usage: python -m infer_server" in run_in_pod("-m", "infer_server", "--help")


def test_a_service_name_resolves_in_a_pod(run_in_pod: RunInPod, namespace: str, echo_service: str) -> None:
    short = run_in_pod("-c", "import socket; print(socket.gethostbyname('echo'))")
    full = run_in_pod("-c", f"import socket; print(socket.gethostbyname('echo.{namespace}.svc.cluster.local'))")
    assert short == full == f"{echo_service}\n"


def test_a_name_outside_the_cluster_is_refused_at_once(run_in_pod: RunInPod) -> None:
    code = (
        "import socket\ntry:\n    print(socket.gethostbyname('example.invalid'))\n"
        "except socket.gaierror as error:\n    print(error.errno in (socket.EAI_AGAIN, socket.EAI_NONAME))"
    )
    assert run_in_pod("-c", code) == "True\n"


def test_zeromq_passes_a_cluster_ip_between_pods(run_in_pod: RunInPod, echo_service: str) -> None:
    assert run_in_pod("-c", ASK.format(address=f"{echo_service}:{PORT}")) == "echo hello\n"


def test_zeromq_passes_a_service_name_between_pods(run_in_pod: RunInPod, echo_service: str) -> None:
    assert run_in_pod("-c", ASK.format(address=f"echo:{PORT}")) == "echo hello\n"


@pytest.mark.our_cluster
def test_zeromq_passes_a_cluster_ip_from_the_tests(echo_service: str) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.RCVTIMEO, 20_000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://{echo_service}:{PORT}")
        socket.send(b"hello")
        assert socket.recv() == b"echo hello"


@pytest.mark.our_cluster
def test_the_same_kubeconfig_serves_outside_the_network() -> None:
    callers_network = (
        f"/proc/{os.getppid()}/ns/net"  # that of whoever called run.sh, which brought us into the cluster's
    )
    assert os.readlink(callers_network) != os.readlink("/proc/self/ns/net")
    command = ["nsenter", f"--net={callers_network}", "kubectl", "get", "--raw=/readyz"]
    assert subprocess.check_output(command, text=True) == "ok"


@pytest.mark.our_cluster
def test_a_pod_that_asks_for_gpus_comes_to_a_fake_node(kubectl: Kubectl, namespace: str) -> None:
    container = {"name": "main", "image": "any/image:1", "resources": {"limits": {"nvidia.com/gpu": "2"}}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "fake", "namespace": namespace},
        "spec": {"containers": [container], "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]},
    }
    kubectl("apply", "-f", "-", given=pod)
    kubectl("wait", "--namespace", namespace, "--for=condition=Ready", "pod/fake", "--timeout=60s")
    node = kubectl("get", "pod", "fake", "--namespace", namespace, "--output", "jsonpath={.spec.nodeName}")
    assert node.startswith("kwok-")
