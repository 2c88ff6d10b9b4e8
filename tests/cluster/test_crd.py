"""The CRD on a real API server: each bound and each rule accepts what keeps it, refuses what breaks it, says what to do."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "manifests/examples").glob("*.yaml"))
GROUP, VERSION, PLURAL = "inferengine.dev", "v1alpha1", "inferencedeployments"


def _load(path: Path) -> Any:
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    found.loader.exec_module(module)
    return module


crd_cases = _load(ROOT / "tests/operator/crd_cases.py")


@pytest.fixture(scope="module", autouse=True)
def definition(kubectl: Callable[..., str]) -> None:
    """The CRD of this clone, served."""
    kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(crd_cases.FILE))
    name = f"crd/{PLURAL}.{GROUP}"
    kubectl("wait", "--for=condition=Established", name, "--timeout=60s")


@pytest.fixture(scope="module")
def api() -> client.CustomObjectsApi:
    return client.CustomObjectsApi(config.new_client_from_config())


class Server:
    """Tries objects out; nothing is kept but by `make`."""

    def __init__(self, api: client.CustomObjectsApi, namespace: str) -> None:
        self._api = api
        self.namespace = namespace

    def refusal(self, patch: dict[str, Any], name: str = "d") -> str | None:
        """Of a new object; None if it would be accepted."""
        body = crd_cases.resource(patch, name, self.namespace)
        return self._refusal(self._api.create_namespaced_custom_object, body=body)

    def refusal_of_change(self, patch: dict[str, Any], name: str) -> str | None:
        body = crd_cases.resource(patch, name, self.namespace)
        there = self._api.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)
        body["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"]
        return self._refusal(self._api.replace_namespaced_custom_object, name=name, body=body)

    def make(self, patch: dict[str, Any], name: str) -> dict[str, Any]:
        body = crd_cases.resource(patch, name, self.namespace)
        made: dict[str, Any] = self._api.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, body)
        return made

    def _refusal(self, call: Callable[..., Any], **arguments: Any) -> str | None:
        try:
            call(group=GROUP, version=VERSION, namespace=self.namespace, plural=PLURAL, dry_run="All", **arguments)
        except client.ApiException as error:
            if error.status != 422:
                raise
            return str(json.loads(error.body)["message"])
        return None


@pytest.fixture
def server(api: client.CustomObjectsApi, namespace: str) -> Server:
    return Server(api, namespace)


NEW = [case for case in crd_cases.cases() if case.before is None]
CHANGES = [case for case in crd_cases.cases() if case.before is not None]


@pytest.mark.parametrize("case", NEW, ids=lambda case: case.what)
def test_a_new_resource(server: Server, case: Any) -> None:
    assert server.refusal(case.accepted) is None
    refusal = server.refusal(case.refused)
    assert refusal is not None
    assert case.said in refusal


@pytest.mark.parametrize("case", CHANGES, ids=lambda case: case.what)
def test_a_change(server: Server, case: Any) -> None:
    name = f"change-{CHANGES.index(case)}"
    server.make(case.before, name)
    assert server.refusal_of_change(case.accepted, name) is None
    refusal = server.refusal_of_change(case.refused, name)
    assert refusal is not None
    assert case.said in refusal


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_applies_unchanged_and_twice_the_same(
    kubectl: Callable[..., str], namespace: str, file: Path
) -> None:
    apply = ("apply", "--namespace", namespace, "--filename", str(file), "--output", "json")
    first, second = (json.loads(kubectl(*apply)) for _ in range(2))
    assert (first["metadata"]["generation"], second["metadata"]["generation"]) == (1, 1)


def test_what_people_see(kubectl: Callable[..., str], server: Server, api: client.CustomObjectsApi) -> None:
    made = server.make({"spec.replicas": 2}, "seen")
    made["status"] = {
        "observedGeneration": 1,
        "replicas": 2,
        "readyReplicas": 1,
        "selector": "a=b",
        "tenantCount": 1,
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "RollingOut",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    }
    api.replace_namespaced_custom_object_status(GROUP, VERSION, server.namespace, PLURAL, "seen", made)
    header, line = kubectl("get", "infd", "seen", "--namespace", server.namespace).splitlines()
    assert header.split() == ["NAME", "READY", "REPLICAS", "MODEL", "TENANTS", "AGE"]
    assert line.split()[:5] == ["seen", "False", "1", "m", "1"]
    kubectl("scale", "infd/seen", "--namespace", server.namespace, "--replicas", "3")
    scale = api.get_namespaced_custom_object_scale(GROUP, VERSION, server.namespace, PLURAL, "seen")
    assert (scale["spec"]["replicas"], scale["status"]["replicas"], scale["status"]["selector"]) == (3, 2, "a=b")


def test_a_tenant_is_changed_by_its_name_alone(kubectl: Callable[..., str], server: Server) -> None:
    """Two people who apply different tenants don't take each other's away."""
    server.make({}, "shared")
    added = crd_cases.resource({"spec.tenants": [{"name": "late", "suspend": True}]}, "shared", server.namespace)
    apply = ("apply", "--server-side", "--force-conflicts", "--field-manager", "another", "--filename", "-")
    kubectl(*apply, given=added)
    found = json.loads(kubectl("get", "infd/shared", "--namespace", server.namespace, "--output", "json"))
    assert [(tenant["name"], tenant["suspend"]) for tenant in found["spec"]["tenants"]] == [
        ("acme", False),
        ("late", True),
    ]


def test_every_field_is_explained(kubectl: Callable[..., str]) -> None:
    """In `kubectl explain`: each field has a sentence."""

    def fields(node: dict[str, Any], path: str) -> list[str]:
        found = []
        for name, child in node.get("properties", {}).items():
            if not child.get("description", "").endswith("."):
                found.append(f"{path}.{name}")
            found += fields(child, f"{path}.{name}")
        return found + (fields(node["items"], path) if "items" in node else [])

    assert fields(crd_cases.schema()["properties"]["spec"], "spec") == []
    assert "tokensPerMinute" in kubectl("explain", "infd.spec.tenants.quota")
