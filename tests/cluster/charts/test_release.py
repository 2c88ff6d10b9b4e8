"""A release from its install to its second install: a token from a real pod, and resources that outlive their operator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.our_cluster

MANIFESTS = Path(__file__).parents[3] / "manifests"
DEFINITION = "customresourcedefinition/inferencedeployments.inferengine.dev"
TOKEN_SECONDS = 270
SERVE_SECONDS = 240
PROMPT = "The capital of France is " * 20
CLIENT = """
import json, sys
from infer_server.client import Client
given, prompt = json.loads(sys.argv[1]), sys.argv[2]
with Client(
    endpoint=given["endpoint"],
    server_public_key=given["serverPublicKey"],
    client_public_key=given["clientPublicKey"],
    client_secret_key=given["clientSecretKey"],
    connect_timeout=60,
) as client:
    done = client.generate(prompt, max_tokens=8, temperature=0)
print(json.dumps([done.text, done.usage.cached_tokens]))
"""

Manifest = dict[str, Any]


def test_helm_test_gets_a_token_from_a_real_pod(
    release: Any, until: Callable[..., Any], resources_in: Callable[[str], list[str]]
) -> None:
    release.install()
    logs = release.test(TOKEN_SECONDS)
    assert "\nready\n" in logs, logs
    assert " 8 tokens from tcp://helm-test-" in logs, logs
    assert release.get("clusterrole", "inferengine-operator") is None
    until(lambda: not resources_in(release.namespace), "what the test made is gone")


def test_resources_outlive_the_release_and_the_next_one_goes_on(
    release: Any, kubectl: Callable[..., str], until: Callable[..., Any], run_in_pod: Callable[..., str]
) -> None:
    """The quickstart on a real pod, which serves whether there is an operator or not."""

    def ask(tenant: str) -> tuple[str, int]:
        """Text and cached tokens, for a client in the cluster with nothing but the tenant's Secret."""
        given = json.dumps(release.secret(f"quickstart.{tenant}")).replace(
            "$", "$$"
        )  # or a pod takes $( for a variable
        text, cached = json.loads(run_in_pod("-c", CLIENT, given, PROMPT))
        return text, cached

    example = yaml.safe_load((MANIFESTS / "examples/quickstart.yaml").read_text())["spec"]
    spec = release.real_spec({name: example[name] for name in ("model", "engine", "tenants")})
    release.apply("quickstart", spec)
    until(lambda: release.condition("quickstart", "Ready") == "True", "the quickstart is ready", SERVE_SECONDS)
    before, pods = release.children("quickstart"), release.pods("quickstart")
    assert {"Deployment", "Service", "ConfigMap", "ServiceAccount", "Secret", "NetworkPolicy"} <= {
        kind for kind, _ in before
    }
    text, cached = ask("acme")
    assert (len(text) > 0, cached) == (True, 0)
    assert ask("globex") == (text, 0)  # nothing of another tenant's cache
    keys = release.secret("quickstart.acme")
    definition = kubectl("get", DEFINITION, "--output=jsonpath={.metadata.uid}")

    release.uninstall()
    assert release.get("deployment", "inferengine-operator") is None
    assert kubectl("get", DEFINITION, "--output=jsonpath={.metadata.uid}") == definition
    assert release.children("quickstart") == before
    assert ask("acme")[1] > 50  # with its own cache
    release.apply("quickstart", spec | {"tenants": [*spec["tenants"], {"name": "initech"}]})
    assert release.get("secret", "quickstart.initech") is None

    release.install()
    until(lambda: release.get("secret", "quickstart.initech"), "the tenant that was added meanwhile")
    until(lambda: release.condition("quickstart", "Ready") == "True", "the quickstart is ready again")
    assert before.items() <= release.children("quickstart").items()
    assert release.secret("quickstart.acme") == keys
    assert release.pods("quickstart") == pods  # none was started anew
    assert ask("initech") == (text, 0)
    assert ask("acme")[1] > 50

    kubectl("delete", "infd/quickstart", "-n", release.namespace, "--timeout=90s")
    until(lambda: not release.children("quickstart"), "everything of the resource is gone")
