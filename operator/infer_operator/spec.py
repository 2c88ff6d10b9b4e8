"""The InferenceDeployment: YAML in, frozen structs out, or every mistake in it, a line each.

The same file is applied to a cluster (`kubectl apply -f`) and run on one machine (`inferengine up -f`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from infer_operator import check
from infer_server.contract.document import Name, QuotaLimits

API_VERSION = "inferengine.dev/v1alpha1"
KIND = "InferenceDeployment"
MAX_FILE_BYTES = 1 << 20

Count = Annotated[int, Meta(ge=1, le=2**53)]
Text = Annotated[str, Meta(min_length=1, max_length=1024, description="a text of 1 to 1024 characters")]
KubernetesName = Annotated[
    str, Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", description="a DNS label of at most 63 characters")
]
ModelName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/:]{0,127}$",
        description="1 to 128 letters, digits and . _ / : -, a letter or digit first",
    ),
]


class _Fields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What all parts of the resource have in common: frozen, and camelCase in YAML."""


class Metadata(_Fields, frozen=True, kw_only=True):
    name: Name
    namespace: KubernetesName | None = None
    """Where it lives on a cluster. On one machine the namespace is always `local`."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class ModelSpec(_Fields, frozen=True, kw_only=True):
    uri: Text
    """An absolute directory, package://module/file or hf://org/name."""
    name: ModelName
    """What clients call it."""
    revision: Text | None = None
    """Branch, tag or commit of an hf:// model."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: Count | None = None
    """Prompt and output together, in tokens; absent: the model's own limit."""


class EngineSpec(_Fields, frozen=True, kw_only=True):
    """The engine's limits and sizes. The defaults are the engine's own; a contract test compares them."""

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


class TenantSpec(_Fields, frozen=True, kw_only=True):
    name: Name
    suspend: bool = False
    """Close its endpoint; its port, keys and cache stay."""
    quota: QuotaLimits = QuotaLimits()


class DeploymentSpec(_Fields, frozen=True, kw_only=True):
    model: ModelSpec
    tenants: Annotated[tuple[TenantSpec, ...], Meta(min_length=1, max_length=256)]
    engine: EngineSpec = EngineSpec()


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
    deployment = msgspec.convert(value, InferenceDeployment)
    errors = list(_contradictions(deployment.spec))
    if errors:
        raise SpecError(errors)
    return deployment


def _contradictions(spec: DeploymentSpec) -> Iterator[str]:
    """What no single field shows."""
    yield from _uri_mistakes(spec.model)
    engine = spec.engine
    if engine.chunked_prefill_tokens < engine.max_batch_size:
        yield (
            f"spec.engine.chunkedPrefillTokens: got {engine.chunked_prefill_tokens}; "
            f"must be at least maxBatchSize ({engine.max_batch_size})"
        )
    first: dict[str, int] = {}
    for index, tenant in enumerate(spec.tenants):
        path = f"spec.tenants[{index}]"
        before = first.setdefault(tenant.name, index)
        if before != index:
            yield f'{path}.name: got "{tenant.name}", as spec.tenants[{before}] has; must be unique'
        quota = tenant.quota
        if quota.requests_burst is not None and quota.requests_per_minute is None:
            yield f"{path}.quota.requestsBurst: got {quota.requests_burst}; must come with requestsPerMinute"
        if quota.tokens_burst is not None and quota.tokens_per_minute is None:
            yield f"{path}.quota.tokensBurst: got {quota.tokens_burst}; must come with tokensPerMinute"


def _uri_mistakes(model: ModelSpec) -> Iterator[str]:
    scheme, separator, rest = model.uri.partition("://")
    known = separator and scheme in ("package", "hf") and rest
    if not known and not model.uri.startswith("/"):
        allowed = "an absolute directory, package://MODULE/FILE or hf://ORG/NAME"
        yield f"spec.model.uri: got {check.shown(model.uri)}; must be {allowed}"
    if model.revision is not None and not model.uri.startswith("hf://"):
        yield f"spec.model.revision: got {check.shown(model.revision)}; must be absent: only hf:// models have revisions"
    elif model.revision is not None and "@" in model.uri:
        yield f"spec.model.revision: got {check.shown(model.revision)}; must be absent where the uri names one with @"


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
