"""charts/valkey on a real node: a deployment serves with a user of its own; data and passwords outlive pods and releases."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis, exceptions

from infer_server.quota import QuotaDenied, QuotaStore

pytestmark = pytest.mark.our_cluster

NAME = "quota"
STORE = "quota-valkey"
IMAGE = {"repository": "inferengine.local/valkey", "tag": "1", "pullPolicy": "Never"}
"""made by ../images/valkey.sh; with the tag tls it has another server, which knows TLS"""
TOKEN_SECONDS = 270

Manifest = dict[str, Any]
Kubectl = Callable[..., str]


class SharedStore:
    """A release of the chart, in a namespace of its own."""

    def __init__(self, kubectl: Kubectl, helm: Callable[..., Any], namespace: str, volume_class: str) -> None:
        self._kubectl = kubectl
        self._helm = helm
        self.namespace = namespace
        self._values: Manifest = {
            "image": IMAGE,
            "nodeSelector": {"type": "real"},
            "persistence": {"storageClassName": volume_class},
        }

    def install(self, *users: Manifest) -> None:
        self._make("install", {"users": list(users)})

    def upgrade(self, *users: Manifest, **more: Any) -> None:
        self._make("upgrade", {"users": list(users), **more})

    def _make(self, do: str, values: Manifest) -> None:
        values = self._values | values
        self._helm(do=do, chart="valkey", values=values, name=NAME, namespace=self.namespace)

    def uninstall(self) -> None:
        self._helm(do="uninstall", name=NAME, namespace=self.namespace)

    def test(self) -> str:
        try:
            logs: str = self._helm(do="test", name=NAME, namespace=self.namespace, timeout=60)
        except AssertionError as error:
            said = self._kubectl("logs", f"{STORE}-test", "-n", self.namespace)
            raise AssertionError(f"{error}\n{said}") from error
        return logs

    def secret(self, name: str, namespace: str | None = None) -> dict[str, str]:
        found = json.loads(self._kubectl("get", "secret", name, "-n", namespace or self.namespace, "--output=json"))
        return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}

    def url(self, name: str, namespace: str) -> str:
        """A user's, with the Service's address: names resolve in pods only."""
        url = self.secret(name, namespace)["url"]
        address = self._kubectl("get", "svc", STORE, "-n", self.namespace, "--output=jsonpath={.spec.clusterIP}")
        return url.replace(f"{STORE}.{self.namespace}.svc", address)

    def user(self, name: str, namespace: str) -> Redis:
        return Redis.from_url(self.url(name, namespace), decode_responses=True)

    def admin(self) -> Redis:
        url = urlsplit(self.url(f"{STORE}-test", self.namespace))
        password = self.secret(STORE)["admin.password"]
        return Redis(host=str(url.hostname), username="admin", password=password, decode_responses=True)

    def pod_uid(self) -> str:
        """Empty while there is none."""
        return self._kubectl(
            "get", "pod", f"{STORE}-0", "-n", self.namespace, "--ignore-not-found", "--output=jsonpath={.metadata.uid}"
        )

    def replace_pod(self) -> None:
        before = self.pod_uid()
        self._kubectl("delete", "pod", f"{STORE}-0", "-n", self.namespace)
        self._kubectl("rollout", "status", f"statefulset/{STORE}", "-n", self.namespace, "--timeout=60s")
        assert self.pod_uid() not in ("", before)


@pytest.fixture(scope="module")
def volume_class(kubectl: Kubectl) -> Iterator[str]:
    """Of one volume, a folder of the node: the cluster has no storage classes."""
    name = f"folder-{secrets.token_hex(4)}"
    folder = Path(tempfile.mkdtemp(prefix="ie-"))
    folder.chmod(0o777)
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"},
            "storageClassName": name,
            "hostPath": {"path": str(folder)},
        },
    }
    kubectl("create", "-f", "-", given=volume)
    yield name
    kubectl("delete", "pv", name, "--wait=false")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared_store(kubectl: Kubectl, helm: Callable[..., Any], volume_class: str) -> Iterator[SharedStore]:
    """Its pods keep the whole restricted standard: they mount nothing of the machine."""
    namespace = f"stores-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl(
        "create",
        "-f",
        "-",
        given={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}},
    )
    store = SharedStore(kubectl, helm, namespace, volume_class)
    store.install()
    yield store
    store.uninstall()
    kubectl("delete", "namespace", namespace, "--wait=false")


def test_a_deployment_serves_with_a_user_of_its_own(
    shared_store: SharedStore, release: Any, until: Callable[..., Any]
) -> None:
    """Operator and pod have nothing but the user's Secret; what they wrote goes with the deployment."""
    shared_store.upgrade({"name": "team", "namespace": release.namespace})
    quota_store = {"urlSecretRef": {"name": f"{STORE}-team", "key": "url"}}
    spec = release.real_spec({"quotaStore": quota_store, "tenants": [{"name": "first", "quota": {"tokensPerDay": 99}}]})
    release.install(test={"spec": spec})
    logs = release.test(TOKEN_SECONDS)
    assert " 8 tokens from tcp://helm-test-" in logs, logs
    with shared_store.admin() as admin:
        calls = admin.info("commandstats")
        assert calls["cmdstat_fcall"]["calls"] >= 2  # reserve, settle
        assert calls["cmdstat_function|load"]["calls"] == 1  # by the pod itself
        until(lambda: not admin.keys("inferengine:*"), "the operator has deleted all keys of the deployment")


def test_helm_test_uses_the_rights_of_a_user_and_is_refused_more(shared_store: SharedStore) -> None:
    said = shared_store.test().splitlines()
    assert {"PING: PONG", "FCALL: unknown_tenant"} <= set(said)
    assert {line.partition(":")[0] for line in said if "NOPERM" in line} == {
        "GET",
        "HSET",
        "FUNCTION",
        "FLUSHALL",
        "CONFIG",
    }
    assert "ready" in said


def test_data_and_passwords_outlive_pods_upgrades_and_the_release(shared_store: SharedStore, namespace: str) -> None:
    first = {"name": "team", "namespace": namespace}
    second = {"name": "second", "namespace": namespace, "deployment": "d"}
    shared_store.upgrade(first)
    url = shared_store.secret(f"{STORE}-team", namespace)["url"]
    key = f"inferengine:{{{namespace}/d/acme}}:state"
    with shared_store.user(f"{STORE}-team", namespace) as user:
        user.hset(key, "used:20260101", 7)

    shared_store.replace_pod()
    assert there(shared_store, f"{STORE}-team", namespace, key)

    before = shared_store.pod_uid()
    shared_store.upgrade(first)
    assert shared_store.pod_uid() == before, "an upgrade that changes nothing restarts nothing"
    shared_store.upgrade(first, second)
    assert shared_store.secret(f"{STORE}-team", namespace)["url"] == url
    assert there(shared_store, f"{STORE}-second", namespace, key)
    with shared_store.user(f"{STORE}-second", namespace) as user, pytest.raises(exceptions.NoPermissionError):
        user.hgetall(f"inferengine:{{{namespace}/e/acme}}:state")

    shared_store.uninstall()
    shared_store.install(first)
    assert shared_store.secret(f"{STORE}-team", namespace)["url"] == url
    assert there(shared_store, f"{STORE}-team", namespace, key)


def there(store: SharedStore, user: str, namespace: str, key: str) -> bool:
    with store.user(user, namespace) as client:
        return bool(client.hgetall(key) == {"used:20260101": "7"})


async def test_encrypted(shared_store: SharedStore, kubectl: Kubectl, namespace: str, tmp_path: Path) -> None:
    """The certificate is a CA of its own; the client that loads the functions, and the test's, verify it."""
    make_certificate(tmp_path, f"{STORE}.{shared_store.namespace}.svc")
    files = {"tls.crt": "certificate", "tls.key": "key", "ca.crt": "certificate"}
    data = {name: (tmp_path / file).read_text() for name, file in files.items()}
    where = {"name": "certificate", "namespace": shared_store.namespace}
    kubectl("create", "-f", "-", given={"apiVersion": "v1", "kind": "Secret", "metadata": where, "stringData": data})
    user = {"name": "secure", "namespace": namespace}
    tls = {"secretName": "certificate", "caFile": str(tmp_path / "certificate")}
    # Its server is older and would not read the other's file.
    shared_store.upgrade(user, tls=tls, image=IMAGE | {"tag": "tls"}, persistence={"enabled": False})
    assert "ready" in shared_store.test().splitlines()
    # The certificate is not for the address; that its CA is the right one is verified.
    url = shared_store.url(f"{STORE}-secure", namespace) + "&ssl_check_hostname=false"
    async with QuotaStore.open(url, timeout_seconds=5) as store:
        with pytest.raises(QuotaDenied, match="has no limits in the quota store"):
            await store.usage(f"{namespace}/d/acme")
    with (
        pytest.raises(exceptions.ConnectionError),
        Redis.from_url(url.replace("rediss:", "redis:").partition("?")[0]) as plain,
    ):
        plain.ping()


def make_certificate(directory: Path, name: str) -> None:
    key, certificate = directory / "key", directory / "certificate"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    command += [
        "-subj",
        "/CN=store",
        "-addext",
        f"subjectAltName=DNS:{name}",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(command, check=True, capture_output=True)
