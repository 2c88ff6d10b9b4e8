"""What the chart makes of its values; and that `kubectl apply -k manifests/` makes the same."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from infer_operator.builders.networkpolicy import OPERATOR_LABELS
from infer_operator.kube import CHILDREN, LEASE, OPTIONAL, RESOURCE
from infer_operator.main import LEASE_NAME
from infer_operator.options import parse

REPOSITORY = Path(__file__).parents[2]
MANIFESTS = REPOSITORY / "manifests"
CHART = REPOSITORY / "charts/inferengine"

Manifest = dict[str, Any]
Objects = Callable[..., list[Manifest]]

ALL_VALUES: Manifest = yaml.safe_load(Path(__file__).with_name("all_values.yaml").read_text())["inferengine"]
FOR_PEOPLE = ("inferengine-operator-view", "inferengine-operator-edit")
"""ClusterRoles that are no rights of the operator's"""


def one(objects: list[Manifest], kind: str, name: str = "inferengine-operator") -> Manifest:
    (found,) = [item for item in objects if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def kinds(objects: list[Manifest]) -> set[tuple[str, str | None]]:
    """Each kind with its namespace."""
    return {(item["kind"], item["metadata"].get("namespace")) for item in objects}


def test_all_namespaces(objects: Objects) -> None:
    made = objects()
    assert kinds(made) == {
        ("CustomResourceDefinition", None),
        ("ClusterRole", None),
        ("ClusterRoleBinding", None),
        ("Role", "inferengine-system"),  # of the Lease
        ("RoleBinding", "inferengine-system"),
        ("ServiceAccount", "inferengine-system"),
        ("Deployment", "inferengine-system"),
    }
    assert "--watch-namespace" not in str(one(made, "Deployment"))


def test_one_namespace_gets_the_same_rights_there_and_none_elsewhere(objects: Objects) -> None:
    made = objects({"watchNamespace": "team-a"})
    roles = {item["metadata"]["name"] for item in made if item["kind"] in ("ClusterRole", "ClusterRoleBinding")}
    assert roles == set(FOR_PEOPLE)
    role, binding = one(made, "Role"), one(made, "RoleBinding")
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "team-a"
    *rules, namespaces = one(objects(), "ClusterRole")["rules"]
    assert role["rules"] == rules
    assert namespaces == {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "inferengine-operator", "namespace": "inferengine-system"}
    ]
    assert "--watch-namespace=team-a" in one(made, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]


def test_rules_name_what_the_operator_makes(objects: Objects) -> None:
    rules = one(objects(), "ClusterRole")["rules"]
    whole = ["get", "list", "watch", "create", "patch", "delete"]
    made = {(group, plural) for rule in rules if rule["verbs"] == whole for group, plural in _named(rule)}
    assert made == {(kind.api_version.rpartition("/")[0], kind.plural) for kind in (*CHILDREN, *OPTIONAL)}
    assert "*" not in str(rules)
    lease = one(objects(), "Role", "inferengine-operator-lease")
    assert {plural for rule in lease["rules"] for _, plural in _named(rule)} == {LEASE.plural}
    assert lease["rules"][1]["resourceNames"] == [LEASE_NAME]


def test_the_clusters_own_roles_see_and_change_resources(objects: Objects) -> None:
    made = objects()
    view, edit = (one(made, "ClusterRole", name) for name in FOR_PEOPLE)
    label = "rbac.authorization.k8s.io/aggregate-to-"
    for role, name in ((view, "view"), (edit, "edit")):
        assert {key for key in role["metadata"]["labels"] if key.startswith(label)} == {label + name}
        assert all(plural.partition("/")[0] == RESOURCE.plural for rule in role["rules"] for _, plural in _named(rule))
    assert {verb for rule in view["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert f"{RESOURCE.plural}/status" not in str(edit["rules"]), "the operator's alone to write"
    for values in ({"rbac": {"aggregate": False}}, {"rbac": {"create": False}}):
        assert not {item["metadata"]["name"] for item in objects(values)} & set(FOR_PEOPLE)


def test_a_second_release_for_a_namespace_makes_nothing_of_the_clusters(objects: Objects) -> None:
    made = objects({"watchNamespace": "team-b", "crds": {"enabled": False}})
    assert {namespace for _, namespace in kinds(made)} == {"inferengine-system", "team-b"}
    elsewhere = objects({"crds": {"enabled": False}})
    assert one(elsewhere, "ClusterRole", FOR_PEOPLE[0])


def test_several_operators_are_kept_apart(objects: Objects) -> None:
    assert "PodDisruptionBudget" not in {kind for kind, _ in kinds(objects())}
    made = objects({"replicas": 2})
    budget, deployment = one(made, "PodDisruptionBudget")["spec"], one(made, "Deployment")["spec"]
    assert budget == {"maxUnavailable": 1, "selector": deployment["selector"]}
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"] == deployment["selector"]
    assert "topologySpreadConstraints" not in one(objects(), "Deployment")["spec"]["template"]["spec"]


def test_images_by_digest(objects: Objects) -> None:
    digest = "sha256:" + "0" * 64
    values = {"image": {"digest": digest, "tag": "2"}, "engineImage": {"digest": digest}}
    (container,) = one(objects(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"inferengine-operator@{digest}"
    assert f"--image=inferengine-engine@{digest}" in container["args"]


def test_prometheus_finds_the_operators_metrics(objects: Objects) -> None:
    made = objects(ALL_VALUES)
    monitor, deployment = one(made, "PodMonitor"), one(made, "Deployment")["spec"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"] == deployment["selector"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (port,) = deployment["template"]["spec"]["containers"][0]["ports"]
    assert endpoint == {"port": port["name"], "interval": "1m"}


def test_common_labels_are_on_every_object_and_select_nothing(objects: Objects) -> None:
    for item in objects(ALL_VALUES):
        if item["kind"] != "CustomResourceDefinition":
            assert item["metadata"]["labels"]["cost-centre"] == "7", item["kind"]
    deployment = one(objects(ALL_VALUES), "Deployment")["spec"]
    assert "cost-centre" in deployment["template"]["metadata"]["labels"]
    assert "cost-centre" not in deployment["selector"]["matchLabels"]


def _named(rule: Manifest) -> list[tuple[str, str]]:
    return [(group, plural) for group in rule["apiGroups"] for plural in rule["resources"]]


def test_the_operator_understands_its_arguments(objects: Objects) -> None:
    deployment = one(objects(ALL_VALUES | {"watchNamespace": "team-a"}), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["/opt/python", "-m", "infer_operator", "operator"]
    options = parse(container["args"])
    assert options.watch_namespace == "team-a"
    assert options.port == container["ports"][0]["containerPort"] == 9999
    assert options.context.image == "registry.test/engine:3"
    assert options.context.image_pull_policy == "Never"
    assert options.sweep_seconds == 60


def test_every_value_reaches_the_pod(objects: Objects) -> None:
    made = objects(ALL_VALUES)
    template = one(made, "Deployment")["spec"]["template"]
    pod = template["spec"]
    (container,) = pod["containers"]
    assert one(made, "Deployment")["spec"]["replicas"] == 2
    assert (container["image"], container["imagePullPolicy"]) == ("registry.test/operator:2", "Always")
    assert pod["serviceAccountName"] == one(made, "ServiceAccount", "mine")["metadata"]["name"]
    assert one(made, "ServiceAccount", "mine")["metadata"]["annotations"] == {"a": "b"}
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["annotations"] == {"c": "d"}
    assert container["resources"] == ALL_VALUES["resources"]
    assert (container["env"], container["volumeMounts"], pod["volumes"]) == (
        ALL_VALUES["extraEnv"],
        ALL_VALUES["extraVolumeMounts"],
        ALL_VALUES["extraVolumes"],
    )
    for name in (
        "imagePullSecrets",
        "nodeSelector",
        "tolerations",
        "affinity",
        "topologySpreadConstraints",
        "priorityClassName",
    ):
        assert pod[name] == ALL_VALUES[name], name


def test_pods_keep_the_restricted_standard(objects: Objects, render: Callable[..., dict[str, str]]) -> None:
    test_pod = yaml.safe_load(render()["tests/pod.yaml"])
    for pod in (one(objects(), "Deployment")["spec"]["template"]["spec"], test_pod["spec"]):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_embedded_stores_let_the_operator_in_and_nobody_else(
    objects: Objects, render: Callable[..., dict[str, str]]
) -> None:
    """Their NetworkPolicies select it by this label."""
    for values in ({}, ALL_VALUES):
        labels = one(objects(values), "Deployment")["spec"]["template"]["metadata"]["labels"]
        assert OPERATOR_LABELS.items() <= labels.items()
    test_pod = yaml.safe_load(render()["tests/pod.yaml"])
    assert not OPERATOR_LABELS.items() <= test_pod["metadata"]["labels"].items()


def test_definitions_stay_unless_told_otherwise(objects: Objects) -> None:
    source = yaml.safe_load((MANIFESTS / "crds/inferencedeployments.yaml").read_text())
    name = source["metadata"]["name"]
    kept = one(objects(), "CustomResourceDefinition", name)
    assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert kept == source
    assert one(objects({"crds": {"keep": False}}), "CustomResourceDefinition", name) == source
    assert "CustomResourceDefinition" not in {kind for kind, _ in kinds(objects({"crds": {"enabled": False}}))}


def test_accounts_and_rights_of_ones_own(objects: Objects) -> None:
    made = objects({"serviceAccount": {"create": False, "name": "theirs"}, "rbac": {"create": False}})
    assert {kind for kind, _ in kinds(made)} == {"CustomResourceDefinition", "Deployment"}
    assert one(made, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"


def test_two_releases_do_not_meet(objects: Objects) -> None:
    def names(release: str) -> set[tuple[str, str]]:
        made = objects({"crds": {"enabled": False}}, release)
        return {(item["kind"], item["metadata"]["name"]) for item in made}

    assert not names("one") & names("two")


def test_notes_say_what_next(render: Callable[..., dict[str, str]]) -> None:
    notes = render({"watchNamespace": "team-a"})["NOTES.txt"]
    commands = re.findall(r"^  ((?:kubectl|inferengine) .*)$", notes, re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["apply", "wait", "connect"]
    assert all("--namespace team-a" in command for command in commands)
    assert "will delete every InferenceDeployment" not in notes
    assert "will delete every InferenceDeployment" in render({"crds": {"keep": False}})["NOTES.txt"]


def test_helm_test_can_do_what_it_does_and_no_more(render: Callable[..., dict[str, str]]) -> None:
    texts = render({"watchNamespace": "team-a"})
    role, pod = yaml.safe_load(texts["tests/role.yaml"]), yaml.safe_load(texts["tests/pod.yaml"])
    assert role["metadata"]["namespace"] == "team-a"
    assert [(rule["resources"], rule["verbs"]) for rule in role["rules"]] == [
        ([RESOURCE.plural], ["create", "get", "delete"]),
        (["secrets"], ["get"]),
    ]
    content = yaml.safe_load(texts["tests/configmap.yaml"])["data"]
    assert content["first_token.py"].strip() == (CHART / "files/first_token.py").read_text().strip()
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert not any(path.startswith("tests/") for path in render({"test": {"enabled": False}}))


def test_each_template_makes_one_object(render: Callable[..., dict[str, str]]) -> None:
    for path, text in render(ALL_VALUES).items():
        if path != "NOTES.txt":
            assert len(list(yaml.safe_load_all(text))) == 1, path


def test_the_archive_holds_all_that_the_folder_holds(
    render: Callable[..., dict[str, str]], archive: Callable[..., str]
) -> None:
    """Also the definition, which the folder has by a link to manifests/crds."""
    assert render(path=archive()) == render()


def test_chart_and_project_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_kustomize_makes_the_same(objects: Objects) -> None:
    """But for what belongs to Helm alone; and the namespace, which `helm install --create-namespace` makes."""
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    assert set(kustomization) == {"apiVersion", "kind", "resources"}, "what changes resources needs kustomize itself"
    found = [yaml.safe_load((MANIFESTS / path).read_text()) for path in kustomization["resources"]]
    namespace = one(found, "Namespace", "inferengine-system")
    by_name = {(item["kind"], item["metadata"]["name"]): item for item in found if item is not namespace}
    assert by_name == {(item["kind"], item["metadata"]["name"]): _without_helm(item) for item in objects()}


def _without_helm(manifest: Manifest) -> Manifest:
    metas = [manifest["metadata"]]
    if manifest["kind"] == "Deployment":
        metas.append(manifest["spec"]["template"]["metadata"])
    for meta in metas:
        for name in ("app.kubernetes.io/managed-by", "helm.sh/chart"):
            meta.get("labels", {}).pop(name, None)
        if meta.get("annotations") == {"helm.sh/resource-policy": "keep"}:
            del meta["annotations"]
    return manifest
