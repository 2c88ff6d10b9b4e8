"""Where a pod finds its model: the volumes, the init container and the rules that each kind of URI needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., Any]

DIGEST = "sha256:" + "0" * 64
SECRET = {"name": "s", "key": "k"}
LINK = "/tmp/inferengine-model"


def model(uri: str, **fields: Any) -> dict[str, Any]:
    return {"uri": uri, "name": "m", **fields}


def opened(made: Any) -> str:
    """What the server opens as its model."""
    return str(json.loads(made.one("ConfigMap")["data"]["pod.json"])["model"])


def fetch(made: Any) -> dict[str, Any]:
    (container,) = made.pod["spec"]["initContainers"]
    return dict(container)


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["name"]: mount for mount in container["volumeMounts"]}


def egress_ports(made: Any) -> list[int]:
    rules = made.one("NetworkPolicy")["spec"]["egress"]
    return [rule["ports"][0]["port"] for rule in rules if "to" not in rule and rule["ports"][0]["port"] != 53]


@pytest.mark.parametrize(
    ("uri", "ports"),
    [
        ("s3://bucket/models/llama", [443]),
        ("https://host/model.gguf", [443]),
        ("https://host:8443/model.gguf", [443, 8443]),
        ("https://[fd00::1]/model.gguf", [443]),
        ("https://[fd00::1]:8443/model.gguf", [443, 8443]),
        ("https://host/a:1/model.gguf", [443]),
        ("http://models.team.svc/llama", [80]),
        ("http://models.team.svc:8080/llama", [80, 8080]),
        ("hf://org/name", [443]),
    ],
)
def test_a_remote_model_is_fetched_and_the_network_open_for_it(make: Make, uri: str, ports: list[int]) -> None:
    made = make(model=model(uri))
    assert fetch(made)["args"] == ["--link", LINK, uri]
    assert made.one("Deployment")["spec"]["progressDeadlineSeconds"] == 3600
    assert opened(made) == LINK
    assert egress_ports(made) == ports


def test_a_uri_names_no_variable_of_the_container(make: Make) -> None:
    made = make(model=model("https://host/$(INFERENGINE_HTTP_TOKEN)/$$.gguf", credentialsSecretRef=SECRET))
    assert fetch(made)["args"][-1] == "https://host/$$(INFERENGINE_HTTP_TOKEN)/$$$$.gguf"


@pytest.mark.parametrize("uri", ["/models/m", "package://module/file.gguf", "pvc://claim/llama", "s3://bucket/m"])
def test_a_digest_is_looked_at_before_the_server_starts(make: Make, uri: str) -> None:
    made = make(model=model(uri, digest=DIGEST))
    args = fetch(made)["args"]
    assert args[:4] == ["--link", LINK, "--expect", DIGEST]
    assert opened(made) == LINK
    assert "modelDigest" not in made.one("ConfigMap")["data"]["pod.json"]
    assert fetch(made)["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_claim_is_mounted_for_reading_and_not_copied(make: Make) -> None:
    made = make(model=model("pvc://models/llama/8b"))
    assert "initContainers" not in made.pod["spec"]
    assert "progressDeadlineSeconds" not in made.one("Deployment")["spec"]
    assert made.volume("model-claim")["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    mount = mounts(made.container)["model-claim"]
    assert mount["readOnly"] is True
    assert opened(made) == f"{mount['mountPath']}/llama/8b"
    assert egress_ports(made) == []
    checked = make(model=model("pvc://models", digest=DIGEST))
    assert fetch(checked)["args"][-1] == mount["mountPath"]
    assert mounts(fetch(checked))["model-claim"] == mounts(checked.container)["model-claim"] == mount


def test_a_claim_that_is_the_cache_too_is_attached_once(make: Make) -> None:
    made = make(model=model("pvc://models/llama"), modelCache={"claimName": "models"})
    assert made.volume("model-claim")["persistentVolumeClaim"] == {"claimName": "models"}
    assert mounts(made.container)["model-claim"]["readOnly"] is True


def test_the_credentials_of_s3_are_a_file(make: Make) -> None:
    made = make(model=model("s3://bucket/m", credentialsSecretRef=SECRET))
    volume = made.volume("model-credentials")["secret"]
    assert (volume["secretName"], volume["items"]) == ("s", [{"key": "k", "path": "credentials"}])
    file = f"{mounts(fetch(made))['model-credentials']['mountPath']}/credentials"
    env = {variable["name"]: variable.get("value") for variable in fetch(made)["env"]}
    assert (env["AWS_SHARED_CREDENTIALS_FILE"], env["AWS_CONFIG_FILE"]) == (file, file)
    assert "model-credentials" not in str(made.container)


@pytest.mark.parametrize("uri", ["https://host/m.gguf", "http://host/m.gguf"])
def test_the_credentials_of_http_are_a_token(make: Make, uri: str) -> None:
    made = make(model=model(uri, credentialsSecretRef=SECRET))
    assert {"name": "INFERENGINE_HTTP_TOKEN", "valueFrom": {"secretKeyRef": SECRET}} in fetch(made)["env"]
    assert "INFERENGINE_HTTP_TOKEN" not in str(made.container)


def test_a_pod_template_gives_the_role_and_the_endpoint(make: Make) -> None:
    """IRSA comes with a service account of the user's; other settings of the download by variables."""
    variable = {"name": "AWS_ENDPOINT_URL", "value": "http://minio:9000"}
    template = {"spec": {"serviceAccountName": "reader", "initContainers": [{"name": "fetch", "env": [variable]}]}}
    made = make(model=model("s3://bucket/m"), podTemplate=template)
    assert made.pod["spec"]["serviceAccountName"] == "reader"
    assert variable in fetch(made)["env"]
    assert fetch(made)["args"][-1] == "s3://bucket/m"
