"""The InferenceDeployment: YAML in, frozen structs out, or every mistake in it, a line each.

The same file is applied to a cluster (`kubectl apply -f`) and run on one machine (`inferengine up -f`). What only a cluster has a
use for is accepted on one machine, too, and told (`without_effect_here`).

manifests/crds/inferencedeployments.yaml says the same in the API server's words: a test walks both, field by field, and
rules.py has what no single field shows.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from infer_operator import check, rules
from infer_operator.fields import (
    Count,
    DeploymentName,
    Digest,
    HostTemplate,
    KubernetesName,
    ModelName,
    Object,
    ObjectName,
    Objects,
    Port,
    PublicKey,
    Quantity,
    ResourceName,
    Seconds,
    SecretKey,
    Strings,
    Text,
)
from infer_server.contract.document import CacheShare, Name, QuotaLimits

API_VERSION = "inferengine.dev/v1alpha1"
KIND = "InferenceDeployment"
MAX_FILE_BYTES = 1 << 20


class _Fields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What all parts of the resource have in common: frozen, and camelCase in YAML."""


class Metadata(_Fields, frozen=True, kw_only=True):
    name: DeploymentName
    namespace: KubernetesName | None = None
    """Where it lives on a cluster. On one machine the namespace is always `local`."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class SecretKeyRef(_Fields, frozen=True, kw_only=True):
    """An entry of a Secret in the resource's namespace."""

    name: ObjectName
    key: SecretKey


class ModelSpec(_Fields, frozen=True, kw_only=True):
    uri: Text
    """An absolute path, package://module/file, hf://org/name, s3://bucket/prefix, https://host/file.gguf, pvc://claim/path."""
    name: ModelName
    """What clients call it."""
    revision: Text | None = None
    """Branch, tag or commit of an hf:// model."""
    digest: Digest | None = None
    """What the model's content must be; nothing else is served. `inferengine fetch --digest URI` prints it."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: Count | None = None
    """Prompt and output together, in tokens; absent: the model's own limit."""
    credentials_secret_ref: SecretKeyRef | None = None
    """hf://: the hub's token; https://, http://: a bearer token; s3://: a file as of ~/.aws/credentials."""


class EngineSpec(_Fields, frozen=True, kw_only=True):
    """The engine's limits and sizes. The defaults are the engine's own; a contract test compares them."""

    image: Text | None = None
    """Of the pods; absent: the operator's choice, which fits its own version."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_batch_size: Count = 32
    max_queue_size: Count = 256
    schedule_interval_ms: Annotated[float, Meta(ge=0, le=1000)] = 1
    max_concurrent_requests: Count = 64
    max_cache_tokens: Count = 65536
    num_layers: Count | None = None
    kv_dim: Count | None = None
    chunked_prefill_tokens: Count = 512
    default_max_tokens: Count = 256
    eviction_policy: KubernetesName = "lru"
    """Or the name of one that the image installs."""
    scheduling_policy: Literal["dlpm", "fcfs", "lpm", "vtc"] = "dlpm"


class AuthSpec(_Fields, frozen=True, kw_only=True):
    """Keys of the tenant's own. Their secret halves never leave the tenant."""

    public_keys: Annotated[tuple[PublicKey, ...], Meta(min_length=1, max_length=2)]
    """Two while one takes over from the other."""


class TenantSpec(_Fields, frozen=True, kw_only=True):
    name: Name
    suspend: bool = False
    """Close its endpoint; its port, keys and cache stay."""
    auth: AuthSpec | None = None
    """Absent: a pair is made for it."""
    secret_namespaces: Annotated[tuple[KubernetesName, ...], Meta(max_length=16)] = ()
    """Get a copy of its Secret, where they allow it."""
    quota: QuotaLimits = QuotaLimits()
    cache: CacheShare = CacheShare()
    """Of each pod."""


class ResourcesSpec(_Fields, frozen=True, kw_only=True):
    """Of the container that serves, in each pod."""

    requests: Annotated[dict[str, Quantity], Meta(max_length=16)] = {}
    limits: Annotated[dict[str, Quantity], Meta(max_length=16)] = {}


class AcceleratorSpec(_Fields, frozen=True, kw_only=True):
    """Each pod gets one device: a pod has one engine, an engine has one device."""

    resource_name: ResourceName
    count: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """Units of a resource that shares a device out, such as gigabytes of its memory; 1 for whole devices."""


class SchedulingSpec(_Fields, frozen=True, kw_only=True):
    """Where the pods may run; the fields of a pod's spec."""

    node_selector: Strings = {}
    tolerations: Objects = ()
    affinity: Object = {}
    topology_spread_constraints: Objects = ()
    priority_class_name: ObjectName | None = None
    runtime_class_name: ObjectName | None = None


class ModelCacheSpec(_Fields, frozen=True, kw_only=True):
    """Where pods keep what they fetched or converted; absent: a directory that lives as long as the pod."""

    claim_name: ObjectName | None = None
    """A PersistentVolumeClaim that all pods share; with several nodes its access mode is ReadWriteMany."""
    size_limit: Quantity | None = None
    """Of the pod's own directory."""


class PortRange(_Fields, frozen=True, kw_only=True):
    first: Port = 20000
    last: Port = 20999


class EndpointsSpec(_Fields, frozen=True, kw_only=True):
    """The Service of each tenant, and the ports of the pods behind them."""

    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    annotations: Strings = {}
    advertised_host: HostTemplate | None = None
    """Outside of the cluster: of the nodes, or each tenant's own where Services are load balancers."""
    port_range: PortRange = PortRange()
    """Tenants keep the ports they have when it changes; a port stays unused for ten minutes after its tenant left."""


class StorageSpec(_Fields, frozen=True, kw_only=True):
    size: Quantity
    storage_class_name: ObjectName | None = None
    """absent: the cluster's default"""


class EmbeddedStoreSpec(_Fields, frozen=True, kw_only=True):
    storage: StorageSpec | None = None
    """Absent: what tenants used is forgotten when the store's pod leaves its node; limits and tenants are not."""


class QuotaStoreSpec(_Fields, frozen=True, kw_only=True):
    """A store of the deployment's own, or one that is there already."""

    embedded: EmbeddedStoreSpec | None = None
    url_secret_ref: SecretKeyRef | None = None
    """redis:// or rediss:// URL of a Redis or Valkey, with its password."""


class DrainSpec(_Fields, frozen=True, kw_only=True):
    seconds: Annotated[int, Meta(ge=0, le=3600)] = 30
    """How long running requests may go on after a pod was told to end."""


class DisruptionSpec(_Fields, frozen=True, kw_only=True):
    """How many pods may be away at once."""

    max_unavailable: Annotated[int, Meta(ge=1, le=1000)] = 1
    """While nodes are drained, and during a rollout without surge."""
    max_surge: Annotated[int, Meta(ge=0, le=1000)] = 1
    """Pods beyond `replicas` during a rollout. 0 where there is no spare accelerator: then old pods go first."""


class ProbesSpec(_Fields, frozen=True, kw_only=True):
    """How the kubelet asks whether a pod is alive and ready."""

    startup_seconds: Seconds = 120
    """How long the processes of a pod may take to answer at all; loading the model doesn't count."""
    period_seconds: Seconds = 5
    timeout_seconds: Seconds = 3
    failure_threshold: Annotated[int, Meta(ge=1, le=100)] = 6
    """So many failures in a row restart a pod."""


class NetworkPolicySpec(_Fields, frozen=True, kw_only=True):
    """What may reach the pods and what they may reach; everything else is closed."""

    enabled: bool = True
    clients: Objects = ()
    """Peers (as in a NetworkPolicy) that may connect to tenants' endpoints; none: everybody, who still needs a key."""
    scrapers: Objects = ()
    """Peers that may read the metrics; none: everybody in the cluster."""
    egress: Objects = ()
    """More egress rules, such as one for a hub that isn't on port 443."""


class ObservabilitySpec(_Fields, frozen=True, kw_only=True):
    """How the pods' metrics are found. The pods serve them on their port http, at /metrics."""

    pod_monitor: Literal["Auto", "Disabled"] = "Auto"
    """Auto: there is a PodMonitor as soon as the cluster knows that kind."""
    labels: Strings = {}
    """On the PodMonitor; a Prometheus chooses by them."""


class DeploymentSpec(_Fields, frozen=True, kw_only=True):
    model: ModelSpec
    tenants: Annotated[tuple[TenantSpec, ...], Meta(min_length=1, max_length=256)]
    engine: EngineSpec = EngineSpec()
    replicas: Annotated[int, Meta(ge=0, le=1000)] | None = None
    """Absent: 1, and an autoscaler may own the Deployment's number."""
    resources: ResourcesSpec = ResourcesSpec()
    accelerator: AcceleratorSpec | None = None
    scheduling: SchedulingSpec = SchedulingSpec()
    pod_template: Object = {}
    """Merged over the pods' own template: maps by key, containers, volumes and variables by name; null removes."""
    model_cache: ModelCacheSpec = ModelCacheSpec()
    endpoints: EndpointsSpec = EndpointsSpec()
    quota_store: QuotaStoreSpec = QuotaStoreSpec()
    drain: DrainSpec = DrainSpec()
    disruption: DisruptionSpec = DisruptionSpec()
    probes: ProbesSpec = ProbesSpec()
    network_policy: NetworkPolicySpec = NetworkPolicySpec()
    observability: ObservabilitySpec = ObservabilitySpec()


class InferenceDeployment(_Fields, frozen=True, kw_only=True):
    api_version: Literal["inferengine.dev/v1alpha1"]
    kind: Literal["InferenceDeployment"]
    metadata: Metadata
    spec: DeploymentSpec


class SpecError(Exception):
    """The resource is wrong; `errors` has a line for each mistake, which says where, what was given and what is allowed."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = tuple(errors)


def load(path: Path) -> InferenceDeployment:
    """Raises SpecError, also where the file cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror or error}"]) from error
    if len(content) > MAX_FILE_BYTES:
        raise SpecError([f"{path}: larger than {MAX_FILE_BYTES} bytes"])
    return parse(content)


def parse(content: bytes) -> InferenceDeployment:
    """One YAML document. Raises SpecError."""
    try:
        value = yaml.load(content.decode(), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise SpecError([f"not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    except yaml.YAMLError as error:
        raise SpecError([_one_line(error)]) from error
    except (ValueError, RecursionError) as error:  # a date such as 2024-99-99; nesting without end
        raise SpecError([f"not valid YAML: {error}"]) from error
    return convert(value)


def convert(value: Any) -> InferenceDeployment:
    """From plain data, as parsed from YAML or received from an API server. Raises SpecError."""
    if not isinstance(value, dict):
        given = "nothing" if value is None else check.shown(value)
        raise SpecError([f"got {given}; must be a mapping with apiVersion, kind, metadata, spec"])
    errors = check.mistakes(value, InferenceDeployment, "")
    if errors:
        raise SpecError(errors)
    try:
        deployment = msgspec.convert(value, InferenceDeployment)
    except msgspec.ValidationError as error:  # what structs themselves refuse: fields that contradict each other
        told, _, place = str(error).rpartition(" - at `$.")
        raise SpecError([f"{place.rstrip('`')}.{told}"]) from error
    errors = list(rules.contradictions(deployment.spec))
    if errors:
        raise SpecError(errors)
    return deployment


def from_server(value: dict[str, Any]) -> InferenceDeployment:
    """An object of the API server, without the parts that it added: its status, and most of the metadata. Raises SpecError."""
    metadata = {name: value["metadata"][name] for name in Metadata.__struct_fields__ if name in value["metadata"]}
    return convert(
        {name: value[name] for name in ("apiVersion", "kind", "spec") if name in value} | {"metadata": metadata}
    )


CLUSTER_ONLY = (
    "model.credentialsSecretRef",
    "engine.image",
    "replicas",
    "resources",
    "accelerator",
    "scheduling",
    "podTemplate",
    "modelCache",
    "endpoints.serviceType",
    "endpoints.annotations",
    "endpoints.advertisedHost",
    "quotaStore",
    "disruption",
    "probes",
    "networkPolicy",
    "observability",
)


def without_effect_here(deployment: InferenceDeployment) -> list[str]:
    """Fields of the spec that were set and mean nothing on one machine."""
    given, default = (
        msgspec.to_builtins(spec)
        for spec in (deployment.spec, DeploymentSpec(model=deployment.spec.model, tenants=deployment.spec.tenants))
    )
    default["model"] = default["model"] | {"credentialsSecretRef": None}
    tenants = enumerate(deployment.spec.tenants)
    return [
        *(f"spec.{path}" for path in CLUSTER_ONLY if _at(given, path) != _at(default, path)),
        *(f"spec.tenants[{index}].secretNamespaces" for index, tenant in tenants if tenant.secret_namespaces),
    ]


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value.get(name)
    return value


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key that occurs twice in a mapping is a mistake, where YAML libraries keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[object, yaml.Node] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # what `<<` brings in may be overridden
                continue
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable) and seen.setdefault(name, key) is not key:
                mark = seen[name].start_mark
                raise yaml.constructor.ConstructorError(
                    None, None, f'"{name}" occurs twice in one mapping, first in line {mark.line + 1}', key.start_mark
                )
        return super().construct_mapping(node, deep)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
    if "cannot start any token" in problem and "\\t" in problem:
        problem = "a tab; YAML is indented with spaces"
    elif problem.startswith("expected <block end>") or problem == "mapping values are not allowed here":
        problem += " (is this line, or the one before it, indented as far as its neighbours?)"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else f"not valid YAML: {problem}"
