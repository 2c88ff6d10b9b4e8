"""One operator for all namespaces, by Helm; and the same objects by `kubectl apply -k`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.our_cluster

MANIFESTS = Path(__file__).parents[3] / "manifests"

Manifest = dict[str, Any]


def test_a_release_for_all_namespaces(
    release: Any,
    kubectl: Callable[..., str],
    until: Callable[..., Any],
    on_kwok: Manifest,
    other_namespace: str,
    all_resources: Callable[[], list[str]],
    audited: Callable[[str], list[Manifest]],
    refused: Callable[[str], list[Manifest]],
) -> None:
    """Tenants' Secrets are copied into a namespace that allows it, which an operator of one namespace has no right to."""
    until(lambda: not all_resources(), "resources of other tests are gone: this operator would look after them too")
    release.install(watchNamespace="")
    elsewhere = release.in_namespace(other_namespace)
    elsewhere.make_store_secret()
    tenants = [{"name": "acme", "secretNamespaces": [release.namespace]}]
    elsewhere.apply("away", release.real_spec({"scheduling": on_kwok, "tenants": tenants}))
    until(lambda: elsewhere.condition("away", "Available") == "True", "ready in a namespace that is not the operator's")
    assert elsewhere.get("secret", "away.acme")
    copy = f"{other_namespace}.away.acme"
    assert release.get("secret", copy) is None
    kubectl("annotate", "namespace", release.namespace, f"inferengine.dev/secrets-from={other_namespace}")
    until(lambda: release.get("secret", copy), "a copy, once it is allowed")
    assert release.secret(copy) == elsewhere.secret("away.acme")
    kubectl("delete", "infd/away", "-n", other_namespace, "--timeout=90s")
    until(lambda: release.get("secret", copy) is None, "the copy goes with its source")
    user = f"system:serviceaccount:{release.namespace}:inferengine-operator"
    assert refused(user) == []
    assert {event["verb"] for event in audited(user) if event["objectRef"]["resource"] == "namespaces"} == {"get"}


def test_kustomize_makes_what_the_files_say(kubectl: Callable[..., str]) -> None:
    """That the files say what the chart makes is tested without a cluster."""
    made = list(yaml.safe_load_all(kubectl("kustomize", str(MANIFESTS))))
    files = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]
    found = [yaml.safe_load((MANIFESTS / path).read_text()) for path in files]
    assert by_name(made) == by_name(found)


def by_name(objects: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    return {(item["kind"], item["metadata"]["name"]): item for item in objects}


def test_the_api_server_takes_the_manifests(kubectl: Callable[..., str], until: Callable[..., Any]) -> None:
    """The image is in no registry here, so no operator starts."""
    namespace = "inferengine-system"
    try:
        kubectl("apply", "-k", str(MANIFESTS))
        pods = ("get", "pods", "--namespace", namespace, "--output=jsonpath={.items[*].spec.serviceAccountName}")
        until(lambda: kubectl(*pods) == "inferengine-operator", "a pod of the operator")
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
        name = "inferengine-operator"
        roles = [f"clusterrole/{name}{suffix}" for suffix in ("", "-view", "-edit")]
        kubectl("delete", *roles, f"clusterrolebinding/{name}", "--ignore-not-found")
