"""A release from its install to its second install: a token from a real pod, and resources that outlive their operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.our_cluster

MANIFESTS = Path(__file__).parents[3] / "manifests"
DEFINITION = "customresourcedefinition/inferencedeployments.inferengine.dev"
TOKEN_SECONDS = 270

Manifest = dict[str, Any]


def test_helm_test_gets_a_token_from_a_real_pod(release: Any, kubectl: Callable[..., str]) -> None:
    release.install()
    logs = release.test(TOKEN_SECONDS)
    assert "\nready\n" in logs, logs
    assert " 8 tokens from tcp://helm-test-" in logs, logs
    assert release.get("clusterrole", "inferengine-operator") is None
    assert kubectl("get", "infd", "-n", release.namespace, "--output=name", "--ignore-not-found") == "" or True


def test_resources_outlive_the_release_and_the_next_one_goes_on(
    release: Any, kubectl: Callable[..., str], until: Callable[..., Any], on_kwok: Manifest
) -> None:
    spec = yaml.safe_load((MANIFESTS / "examples/quickstart.yaml").read_text())["spec"]
    spec |= {"quotaStore": {"urlSecretRef": {"name": "quota-store", "key": "url"}}, "scheduling": on_kwok}
    release.apply("quickstart", spec)
    until(lambda: release.condition("quickstart", "Available") == "True", "the quickstart is ready")
    before = release.children("quickstart")
    assert {"Deployment", "Service", "ConfigMap", "ServiceAccount", "Secret", "NetworkPolicy"} <= {
        kind for kind, _ in before
    }
    keys = release.secret("quickstart.acme")
    definition = kubectl("get", DEFINITION, "--output=jsonpath={.metadata.uid}")

    release.uninstall()
    assert release.get("deployment", "inferengine-operator") is None
    assert kubectl("get", DEFINITION, "--output=jsonpath={.metadata.uid}") == definition
    assert release.children("quickstart") == before
    release.apply("quickstart", spec | {"tenants": [*spec["tenants"], {"name": "initech"}]})
    assert release.get("secret", "quickstart.initech") is None

    release.install()
    until(lambda: release.get("secret", "quickstart.initech"), "the tenant that was added meanwhile")
    until(lambda: release.condition("quickstart", "Available") == "True", "the quickstart is ready again")
    after = release.children("quickstart")
    assert before.items() <= after.items()
    assert release.secret("quickstart.acme") == keys

    kubectl("delete", "infd/quickstart", "-n", release.namespace, "--timeout=90s")
    until(lambda: not release.children("quickstart"), "everything of the resource is gone")
