"""What a chart makes is taken by the API server with every value; an upgrade and its rollback; what people may do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.our_cluster

ALL_VALUES = yaml.safe_load((Path(__file__).parents[2] / "charts/all_values.yaml").read_text())
DEFINITION = "customresourcedefinition/inferencedeployments.inferengine.dev"

Manifest = dict[str, Any]
Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def installed(release: Any) -> Any:
    release.install()
    return release


@pytest.mark.parametrize("chart", ["inferengine", "valkey"])
@pytest.mark.parametrize("is_everything", [True, False], ids=["every value", "defaults"])
def test_the_api_server_takes_what_is_made(
    helm: Callable[..., Any], kubectl: Kubectl, namespace: str, chart: str, is_everything: bool
) -> None:
    """As a dry run. Namespaces of users are replaced by one that is there; PodMonitors are of a definition that is not."""
    values = ALL_VALUES[chart] if is_everything else {}
    if "users" in values:
        values = values | {"users": [user | {"namespace": namespace} for user in values["users"]]}
    texts = helm(do="render", chart=chart, values=values, name="taken", namespace=namespace)
    made = [
        item
        for path, text in texts.items()
        if not path.endswith("NOTES.txt")
        for item in yaml.safe_load_all(text)
        if item and item["kind"] != "PodMonitor"
    ]
    for item in made:
        if item["kind"] == "ServiceAccount":  # a pod's has to be there, also for a dry run
            kubectl("apply", "--server-side", "-f", "-", given=item)
    arguments = ("--server-side", "--force-conflicts", "--dry-run=server", "--output=name", "-f", "-")
    taken = kubectl("apply", *arguments, given={"apiVersion": "v1", "kind": "List", "items": made})
    assert len(taken.split()) == len(made) > 6


def test_an_upgrade_and_its_rollback(
    installed: Any, kubectl: Kubectl, until: Callable[..., Any], on_kwok: Manifest
) -> None:
    """Two operators instead of one, and back; what runs notices nothing of it."""
    release = installed
    release.apply("runs", release.real_spec({"scheduling": on_kwok, "tenants": [{"name": "acme"}]}))
    until(lambda: release.condition("runs", "Available") == "True", "ready")
    children, keys = release.children("runs"), release.secret("runs.acme")
    definition = kubectl("get", DEFINITION, "--output=jsonpath={.metadata.uid}")

    release.upgrade(replicas=2)
    assert release.get("pdb", "inferengine-operator")["spec"]["maxUnavailable"] == 1
    assert release.get("deployment", "inferengine-operator")["status"]["readyReplicas"] == 2

    release.roll_back()
    assert release.get("pdb", "inferengine-operator") is None
    assert release.get("deployment", "inferengine-operator")["status"]["readyReplicas"] == 1
    assert kubectl("get", DEFINITION, "--output=jsonpath={.metadata.uid}") == definition
    assert (release.children("runs"), release.secret("runs.acme")) == (children, keys)
    kubectl("delete", "infd/runs", "-n", release.namespace, "--timeout=90s")


def test_what_people_may_do(installed: Any, kubectl: Kubectl, until: Callable[..., Any]) -> None:
    """By the cluster's own roles, in one namespace. Who may see resources sees no key."""
    namespace = installed.namespace
    for role in ("view", "edit"):
        kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "-n", namespace)

    def may(user: str, verb: str, what: str, part: str = "") -> bool:
        arguments = (verb, what, f"--subresource={part}", f"--as={user}", "-n", namespace)
        try:
            return kubectl("auth", "can-i", *arguments).strip() == "yes"
        except RuntimeError:  # its exit code says no as well
            return False

    until(lambda: may("editer", "create", "infd"), "the controller has gathered the roles")
    assert may("editer", "patch", "infd", "scale")
    assert may("editer", "get", "infd")
    assert not may("editer", "patch", "infd", "status")
    until(lambda: may("viewer", "get", "infd"), "the controller has gathered the roles")
    assert may("viewer", "watch", "infd")
    assert may("viewer", "get", "infd", "status")
    assert not may("viewer", "create", "infd")
    assert not may("viewer", "get", "secrets")
    assert not may("nobody", "get", "infd")
