"""For each rule and each bound of the CRD: a resource that keeps it and one that breaks it.

Bounds are found in the CRD itself, so that a new one has its case at once; what a valid text looks like is told by its pattern,
and what has to stand beside a field by COMPANIONS. Rules are written down here, by their message.
Loaded by path: both the tests of the pure reader (tests/operator) and those with an API server (tests/cluster) use it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[2] / "manifests/crds/inferencedeployments.yaml"
ABSENT = object()

Patch = dict[str, Any]
"""path -> value; ABSENT removes"""


@dataclass(frozen=True)
class Case:
    what: str
    """field and keyword, or the rule's message"""
    accepted: Patch
    refused: Patch
    said: str
    """part of the API server's answer"""
    before: Patch | None = None
    """for a rule about changes: what is there already"""
    told: str | None = field(default=None)
    """part of the pure reader's mistakes; None: it sees one resource at a time, or has no such rule"""


def definition() -> dict[str, Any]:
    crd: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return crd


def schema() -> dict[str, Any]:
    found: dict[str, Any] = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def resource(patch: Patch, name: str = "d", namespace: str = "default") -> dict[str, Any]:
    """A small resource with what the patch says."""
    made: dict[str, Any] = {
        "apiVersion": "inferengine.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"uri": "/models/m", "name": "m"}, "tenants": [{"name": "acme"}]},
    }
    for path, value in patch.items():
        *parents, last = _steps(path)
        place: Any = made
        for step in parents:
            place = place[step] if isinstance(step, int) else place.setdefault(step, {})
        if value is ABSENT:
            del place[last]
        else:
            place[last] = copy.deepcopy(value)
    return made


def _steps(path: str) -> list[str | int]:
    return [int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", path)]


# --- bounds -------------------------------------------------------------------------------------------------------------
COMPANIONS: dict[str, Patch] = {
    "spec.engine.maxBatchSize": {"spec.engine.chunkedPrefillTokens": 2**53},
    "spec.engine.chunkedPrefillTokens": {"spec.engine.maxBatchSize": 1},
    "spec.model.revision": {"spec.model.uri": "hf://org/name"},
    "spec.model.credentialsSecretRef": {
        "spec.model.uri": "hf://org/name",
        "spec.model.credentialsSecretRef": {"name": "s", "key": "k"},
    },
    "spec.tenants[0].cache.minTokens": {"spec.engine": {"maxCacheTokens": 2**53}},
    "spec.tenants[0].quota.requestsBurst": {"spec.tenants[0].quota.requestsPerMinute": 1},
    "spec.tenants[0].quota.tokensBurst": {"spec.tenants[0].quota.tokensPerMinute": 1},
    "spec.tenants[0].secretNamespaces": {"spec.tenants[0].secretNamespaces": ["team"]},
    "spec.tenants[0].auth": {"spec.tenants[0].auth": {"publicKeys": ["7" * 40]}},
    "spec.accelerator.count": {"spec.accelerator": {"resourceName": "example.test/gpu-mem"}},
    "spec.accelerator": {"spec.accelerator": {"resourceName": "nvidia.com/gpu"}},
    "spec.endpoints.portRange.first": {"spec.endpoints.portRange.last": 65535, "spec.disruption": {}},
    "spec.endpoints.portRange.last": {"spec.endpoints.portRange.first": 1024},
    "spec.endpoints.advertisedHost": {"spec.endpoints": {"serviceType": "NodePort"}},
    "spec.quotaStore.urlSecretRef": {"spec.quotaStore.urlSecretRef": {"name": "s", "key": "k"}},
    "spec.quotaStore.embedded.storage": {"spec.quotaStore.embedded.storage": {"size": "1Gi"}},
}
"""what makes the field's own bound the only thing that can be wrong"""
PORT_BOUNDS = {  # first and last stand on different sides of the port of probes and metrics
    ("spec.endpoints.portRange.first", "minimum"): {"spec.endpoints.portRange.last": 2000},
    ("spec.endpoints.portRange.last", "maximum"): {"spec.endpoints.portRange.first": 20000},
}

TEXTS = {
    # pattern -> (a text of any length that matches, one that doesn't)
    r"^[A-Za-z0-9][-A-Za-z0-9._/:]{0,127}$": (lambda length: "m" * length, "-m"),
    r"^[a-z0-9]([-a-z0-9]{0,23}[a-z0-9])?$": (lambda length: "7" * length, "Acme"),
    r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$": (lambda length: "a" * (length - 2) + ".a", "a_b"),
    r"^[-._a-zA-Z0-9]{1,253}$": (lambda length: "_" * length, "a/b"),
    r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$": (
        lambda length: "a" * 253 + "/" + "g" * (length - 254),
        "gpu",
    ),
    r"^sha256:[0-9a-f]{64}$": (lambda length: "sha256:" + "0" * (length - 7), "sha256:" + "A" * 64),
    r"^[0-9]{1,12}([.][0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$": (
        lambda length: "1" * 12 + "." + "1" * (length - 15) + "Mi",
        "1 Gi",
    ),
}
TEXTS[r"^[0-9a-zA-Z.:+=^!/*?&<>(){}@%$#\[\]-]{40}$"] = (lambda length: "7" * length, "~" * 40)
TEXTS[r"^([a-z0-9]|[{]tenant[}])([-a-z0-9.]|[{]tenant[}])*$"] = (lambda length: "h" * length, "{other}.example.test")
TEXTS[r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"] = (lambda length: "7" * length, "Team")
NUMBERS = ("integer", "number")


def bounds() -> list[Case]:
    return list(_bounds(schema()["properties"]["spec"], "spec"))


def _bounds(node: dict[str, Any], path: str) -> Iterator[Case]:
    for keyword, accepted, refused in _samples(node):
        yield _bound(path, keyword, accepted, refused)
    for name in node.get("required", ()):
        companions = _companions(f"{path}.{name}", "required")
        yield Case(
            f"{path}.{name} required",
            companions,
            companions | {f"{path}.{name}": ABSENT},
            name,
            told=f"{path}.{name}: missing",
        )
    for name, child in node.get("properties", {}).items():
        yield from _bounds(child, f"{path}.{name}")
    if node.get("type") == "array" and ("properties" in node["items"] or "pattern" in node["items"]):
        yield from _bounds(node["items"], f"{path}[0]")
    if isinstance(node.get("additionalProperties"), dict):
        for keyword, accepted, refused in _samples(node["additionalProperties"]):
            yield _bound(path, keyword, {"cpu": accepted}, {"cpu": refused})


def _bound(path: str, keyword: str, accepted: Any, refused: Any) -> Case:
    companions = _companions(path, keyword)
    if keyword == "type" and path == "spec":
        return Case("spec type", {}, {"spec": refused}, "spec", told="spec: ")
    return Case(f"{path} {keyword}", companions | {path: accepted}, companions | {path: refused}, path, told=path)


def _companions(path: str, keyword: str) -> Patch:
    if (path, keyword) in PORT_BOUNDS:
        return PORT_BOUNDS[path, keyword]
    above = [prefix for prefix in COMPANIONS if path == prefix or path.startswith((f"{prefix}.", f"{prefix}["))]
    return COMPANIONS[above[0]] if above else {}


def _samples(node: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(keyword, accepted, refused)"""
    if "minimum" in node:
        yield "minimum", node["minimum"], node["minimum"] - 1
    if "maximum" in node:
        yield "maximum", node["maximum"], node["maximum"] + 1
    if "enum" in node:
        yield "enum", node["enum"][-1], "something-else"
    if "pattern" in node:
        make, wrong = TEXTS[node["pattern"]]
        yield "pattern", make(node["maxLength"]), wrong
        yield "maxLength", make(node["maxLength"]), make(node["maxLength"] + 1)
    elif "maxLength" in node:
        yield "maxLength", "/" * node["maxLength"], "/" * (node["maxLength"] + 1)
    if "minLength" in node:
        yield "minLength", "/" * node["minLength"], ""
    for keyword, items in (("minItems", -1), ("maxItems", 1)):
        if keyword in node:
            yield keyword, _items(node, node[keyword]), _items(node, node[keyword] + items)
    if "maxProperties" in node:
        most = node["maxProperties"]
        yield "maxProperties", {f"n{i}": "1" for i in range(most)}, {f"n{i}": "1" for i in range(most + 1)}
    if node.get("type") == "boolean":
        yield "type", True, "true"
    elif node.get("type") == "object" and "properties" not in node:
        yield "type", {}, ["a"]


def _items(node: dict[str, Any], count: int) -> list[Any]:
    if "pattern" in node["items"]:
        make, _ = TEXTS[node["items"]["pattern"]]
        texts = [make(node["items"]["maxLength"]) for _ in range(count)]
        return [f"{index}{text[len(str(index)) :]}" for index, text in enumerate(texts)]
    return [{"name": f"t{i}"} if "properties" in node["items"] else {"key": f"k{i}"} for i in range(count)]


# --- rules --------------------------------------------------------------------------------------------------------------
def _rule(said: str, accepted: Patch, refused: Patch, told: str) -> Case:
    return Case(said, accepted, refused, said, told=told)


RULES = [
    _rule(
        "metadata.name must be a DNS label of at most 25 characters",
        {"metadata.name": "a" * 25},
        {"metadata.name": "a" * 26},
        "metadata.name: ",
    ),
    _rule(
        "endpoints.portRange must have a port for each tenant",
        {
            "spec.tenants": [{"name": f"t{i}"} for i in range(3)],
            "spec.endpoints": {"portRange": {"first": 5000, "last": 5002}},
        },
        {
            "spec.tenants": [{"name": f"t{i}"} for i in range(3)],
            "spec.endpoints": {"portRange": {"first": 5000, "last": 5001}},
        },
        "spec.endpoints.portRange: got 5000-5001; must have a port",
    ),
    _rule(
        "accelerator must be absent where engine.device is cpu",
        {"spec.engine.device": "cuda", "spec.accelerator": {"resourceName": "nvidia.com/gpu"}},
        {"spec.engine.device": "cpu", "spec.accelerator": {"resourceName": "nvidia.com/gpu"}},
        "spec.accelerator: got nvidia.com/gpu",
    ),
    _rule(
        "the accelerator must be in accelerator.resourceName alone",
        {"spec.accelerator": {"resourceName": "nvidia.com/gpu"}, "spec.resources.limits": {"memory": "1Gi"}},
        {"spec.accelerator": {"resourceName": "nvidia.com/gpu"}, "spec.resources.limits": {"nvidia.com/gpu": 1}},
        "spec.resources: got nvidia.com/gpu",
    ),
    _rule(
        "count must be 1 for a resource of whole devices",
        {"spec.accelerator": {"resourceName": "nvidia.com/gpumem", "count": 4000}},
        {"spec.accelerator": {"resourceName": "nvidia.com/mig-1g.5gb", "count": 2}},
        "spec.accelerator.count: got 2; must be 1 for nvidia.com/mig-1g.5gb",
    ),
    _rule(
        "uri must be an absolute path, package://MODULE/FILE, hf://ORG/NAME, s3://BUCKET/PREFIX",
        {"spec.model.uri": "https://host:8443/models/file.gguf?version=@2"},
        {"spec.model.uri": "https://host:port/model.gguf"},
        "spec.model.uri: got ",
    ),
    _rule(
        "uri must have no user and no password in it",
        {"spec.model.uri": "s3://bucket/model"},
        {"spec.model.uri": "https://user:password@host/model.gguf"},
        "spec.model.uri: must have no user",
    ),
    _rule(
        "uri must stay in its claim",
        {"spec.model.uri": "pvc://models/llama/..3"},
        {"spec.model.uri": "pvc://models/llama/../../etc"},
        "spec.model.uri: got ",
    ),
    _rule(
        "revision must be absent: only hf:// models have revisions",
        {"spec.model.uri": "hf://org/name", "spec.model.revision": "main"},
        {"spec.model.revision": "main"},
        "spec.model.revision: got ",
    ),
    _rule(
        "revision must be absent where the uri names one with @",
        {"spec.model.uri": "hf://org/name@main"},
        {"spec.model.uri": "hf://org/name@main", "spec.model.revision": "main"},
        "spec.model.revision: got ",
    ),
    _rule(
        "credentialsSecretRef must be absent: only hf://, s3://, https:// and http:// models are fetched",
        {"spec.model.uri": "s3://bucket/model", "spec.model.credentialsSecretRef": {"name": "s", "key": "k"}},
        {"spec.model.credentialsSecretRef": {"name": "s", "key": "k"}},
        "spec.model.credentialsSecretRef: ",
    ),
    _rule(
        "chunkedPrefillTokens must be at least maxBatchSize",
        {"spec.engine": {"maxBatchSize": 8, "chunkedPrefillTokens": 8}},
        {"spec.engine": {"maxBatchSize": 8, "chunkedPrefillTokens": 7}},
        "spec.engine.chunkedPrefillTokens: got 7",
    ),
    _rule(
        "maxTokens must be at least minTokens",
        {"spec.tenants": [{"name": "a", "cache": {"minTokens": 5, "maxTokens": 5}}]},
        {"spec.tenants": [{"name": "a", "cache": {"minTokens": 5, "maxTokens": 4}}]},
        "spec.tenants[0].cache.maxTokens: got 4",
    ),
    _rule(
        "tenants' cache.minTokens must fit together in engine.maxCacheTokens",
        {"spec.tenants": [{"name": name, "cache": {"minTokens": 32768}} for name in "ab"]},
        {"spec.tenants": [{"name": name, "cache": {"minTokens": 32769}} for name in "ab"]},
        "spec.tenants: got 65538",
    ),
    _rule(
        "requestsBurst must come with requestsPerMinute",
        {"spec.tenants": [{"name": "a", "quota": {"requestsBurst": 5, "requestsPerMinute": 1}}]},
        {"spec.tenants": [{"name": "a", "quota": {"requestsBurst": 5}}]},
        "spec.tenants[0].quota.requestsBurst: got 5",
    ),
    _rule(
        "tokensBurst must come with tokensPerMinute",
        {"spec.tenants": [{"name": "a", "quota": {"tokensBurst": 5, "tokensPerMinute": 1}}]},
        {"spec.tenants": [{"name": "a", "quota": {"tokensBurst": 5}}]},
        "spec.tenants[0].quota.tokensBurst: got 5",
    ),
    _rule(
        "a public key can't be all zeros",
        {"spec.tenants[0].auth": {"publicKeys": ["1" * 40]}},
        {"spec.tenants[0].auth": {"publicKeys": ["0" * 40]}},
        "spec.tenants[0].auth.publicKeys[0]: got ",
    ),
    _rule(
        "a request must be at most its limit",
        {"spec.resources": {"requests": {"cpu": "1500m", "memory": "1Gi"}, "limits": {"cpu": 2}}},
        {"spec.resources": {"requests": {"cpu": "2500m"}, "limits": {"cpu": 2}}},
        "spec.resources.requests.cpu: got 2500m",
    ),
    _rule(
        "sizeLimit must be absent where claimName is given",
        {"spec.modelCache": {"claimName": "models"}},
        {"spec.modelCache": {"claimName": "models", "sizeLimit": "1Gi"}},
        "spec.modelCache.sizeLimit: ",
    ),
    _rule(
        "portRange must leave out 9400",
        {"spec.endpoints": {"portRange": {"first": 9401, "last": 9500}}},
        {"spec.endpoints": {"portRange": {"first": 9400, "last": 9500}}},
        "spec.endpoints.portRange: got 9400-9500",
    ),
    _rule(
        "advertisedHost must be absent where serviceType is ClusterIP",
        {"spec.endpoints": {"serviceType": "NodePort", "advertisedHost": "llm.example.test"}},
        {"spec.endpoints": {"advertisedHost": "llm.example.test"}},
        "spec.endpoints.advertisedHost: got llm.example.test; must be absent",
    ),
    _rule(
        "advertisedHost must contain {tenant} where serviceType is LoadBalancer",
        {"spec.endpoints": {"serviceType": "LoadBalancer", "advertisedHost": "{tenant}.llm.example.test"}},
        {"spec.endpoints": {"serviceType": "LoadBalancer", "advertisedHost": "llm.example.test"}},
        "spec.endpoints.advertisedHost: got llm.example.test; must contain {tenant}",
    ),
    _rule(
        "embedded must be absent where urlSecretRef is given",
        {"spec.quotaStore": {"embedded": {}}},
        {"spec.quotaStore": {"embedded": {}, "urlSecretRef": {"name": "s", "key": "k"}}},
        "spec.quotaStore.embedded: ",
    ),
    Case(
        "size can only grow",
        {"spec.quotaStore": {"embedded": {"storage": {"size": "2Gi"}}}},
        {"spec.quotaStore": {"embedded": {"storage": {"size": "500Mi"}}}},
        "size can only grow",
        before={"spec.quotaStore": {"embedded": {"storage": {"size": "1024Mi"}}}},
    ),
    Case(
        "storageClassName can't be changed",
        {"spec.quotaStore": {"embedded": {"storage": {"size": "1Gi", "storageClassName": "fast"}}}},
        {"spec.quotaStore": {"embedded": {"storage": {"size": "1Gi"}}}},
        "storageClassName can't be changed",
        before={"spec.quotaStore": {"embedded": {"storage": {"size": "1Gi", "storageClassName": "fast"}}}},
    ),
]
UNIQUE_TENANTS = Case(
    "tenants are a map by name",
    {"spec.tenants": [{"name": "a"}, {"name": "b"}]},
    {"spec.tenants": [{"name": "a"}, {"name": "a"}]},
    "Duplicate value",
    told='spec.tenants[1].name: got "a"',
)


UNIQUE_KEYS = Case(
    "a tenant's keys are a set",
    {"spec.tenants[0].auth": {"publicKeys": ["1" * 40, "2" * 40]}},
    {"spec.tenants[0].auth": {"publicKeys": ["1" * 40, "1" * 40]}},
    "Duplicate value",
    told="spec.tenants[0].auth.publicKeys[1]: got ",
)


UNIQUE_NAMESPACES = Case(
    "a tenant's namespaces are a set",
    {"spec.tenants[0].secretNamespaces": ["a", "b"]},
    {"spec.tenants[0].secretNamespaces": ["a", "a"]},
    "Duplicate value",
    told='spec.tenants[0].secretNamespaces[1]: got "a" again',
)


def cases() -> list[Case]:
    return [*bounds(), *RULES, UNIQUE_TENANTS, UNIQUE_KEYS, UNIQUE_NAMESPACES]


def messages(node: dict[str, Any] | None = None) -> Iterator[str]:
    """Of all CEL rules in the CRD."""
    node = schema() if node is None else node
    for rule in node.get("x-kubernetes-validations", ()):
        yield rule["message"]
    for child in node.get("properties", {}).values():
        yield from messages(child)
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            yield from messages(node[name])
