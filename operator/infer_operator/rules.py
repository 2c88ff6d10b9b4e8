"""What no single field of a resource shows: two that contradict each other. Pure.

Each rule is also a CEL rule of the CRD, but for the forms that OpenAPI has no words for; the messages say what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from infer_operator import check
from infer_operator.keys import public_key_error
from infer_operator.quantity import value_of

if TYPE_CHECKING:
    from infer_operator.spec import DeploymentSpec, EngineSpec, ModelSpec, ResourcesSpec, TenantSpec

HTTP_PORT = 9400
WHOLE_DEVICES = r"^(nvidia[.]com/(gpu|gpu[.]shared|mig-.*)|amd[.]com/.*|gpu[.]intel[.]com/(i915|xe)|habana[.]ai/gaudi)$"
"""resources of which one unit is a device, or a fixed part of one: a second unit would lie idle"""

URI = (
    "^(/|package://.|hf://.|s3://[a-z0-9][-a-z0-9.]{1,61}[a-z0-9]/.|"
    r"https?://([-A-Za-z0-9._]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/.|"
    "pvc://[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?(/|$))"
)
URI_FORMS = "an absolute path, package://MODULE/FILE, hf://ORG/NAME, s3://BUCKET/PREFIX, https://HOST/FILE.gguf or pvc://CLAIM/PATH"
PASSWORD_IN_URI = "^https?://[^/?#]*@"
UPWARDS = "/[.][.](/|$)"


def contradictions(spec: DeploymentSpec) -> Iterator[str]:
    """`path: got …; must be …`, a line each."""
    yield from _model(spec.model)
    yield from _engine(spec.engine)
    yield from _tenants(spec.tenants)
    yield from _public_keys(spec.tenants)
    yield from _shares(spec)
    yield from _accelerator(spec)
    yield from _resources(spec.resources)
    yield from _endpoints(spec)
    cache, store = spec.model_cache, spec.quota_store
    if cache.claim_name is not None and cache.size_limit is not None:
        yield "spec.modelCache.sizeLimit: must be absent where claimName is given: the claim has a size of its own"
    if store.embedded is not None and store.url_secret_ref is not None:
        yield "spec.quotaStore.embedded: must be absent where urlSecretRef is given: a deployment has one store"


def _model(model: ModelSpec) -> Iterator[str]:
    scheme, given = model.uri.partition("://")[0], f"spec.model.uri: got {check.shown(model.uri)}"
    if re.search(PASSWORD_IN_URI, model.uri):
        yield "spec.model.uri: must have no user and no password in it: use credentialsSecretRef"
    elif not re.search(URI, model.uri):
        yield f"{given}; must be {URI_FORMS}"
    elif scheme == "pvc" and re.search(UPWARDS, model.uri):
        yield f"{given}; must stay in its claim: remove .."
    if model.revision is not None and scheme != "hf":
        yield f"spec.model.revision: got {check.shown(model.revision)}; must be absent: only hf:// models have revisions"
    elif model.revision is not None and "@" in model.uri:
        yield f"spec.model.revision: got {check.shown(model.revision)}; must be absent where the uri names one with @"
    if model.credentials_secret_ref is not None and scheme not in ("hf", "s3", "https", "http"):
        yield (
            "spec.model.credentialsSecretRef: must be absent: "
            "only hf://, s3://, https:// and http:// models are fetched with credentials"
        )


def _engine(engine: EngineSpec) -> Iterator[str]:
    if engine.chunked_prefill_tokens < engine.max_batch_size:
        yield (
            f"spec.engine.chunkedPrefillTokens: got {engine.chunked_prefill_tokens}; "
            f"must be at least maxBatchSize ({engine.max_batch_size})"
        )


def _public_keys(tenants: tuple[TenantSpec, ...]) -> Iterator[str]:
    """Whose a key is must be beyond doubt. No CEL rule compares up to 512 keys within its limit."""
    first: dict[str, str] = {}
    for index, tenant in enumerate(tenants):
        for number, key in enumerate(tenant.auth.public_keys if tenant.auth else ()):
            path = f"spec.tenants[{index}].auth.publicKeys[{number}]"
            error = public_key_error(key)
            if error is not None:
                yield f"{path}: got {check.shown(key)}; {error}"
            before = first.setdefault(key, path)
            if before != path:
                yield f"{path}: got {check.shown(key)}, as {before} has; must be unique: make another pair"


def _tenants(tenants: tuple[TenantSpec, ...]) -> Iterator[str]:
    first: dict[str, int] = {}
    for index, tenant in enumerate(tenants):
        path = f"spec.tenants[{index}]"
        before = first.setdefault(tenant.name, index)
        if before != index:
            yield f'{path}.name: got "{tenant.name}", as spec.tenants[{before}] has; must be unique'
        for number, namespace in enumerate(tenant.secret_namespaces):
            if namespace in tenant.secret_namespaces[:number]:
                yield f'{path}.secretNamespaces[{number}]: got "{namespace}" again; must be unique'
        quota = tenant.quota
        if quota.requests_burst is not None and quota.requests_per_minute is None:
            yield f"{path}.quota.requestsBurst: got {quota.requests_burst}; must come with requestsPerMinute"
        if quota.tokens_burst is not None and quota.tokens_per_minute is None:
            yield f"{path}.quota.tokensBurst: got {quota.tokens_burst}; must come with tokensPerMinute"


def _shares(spec: DeploymentSpec) -> Iterator[str]:
    guaranteed, size = sum(tenant.cache.min_tokens for tenant in spec.tenants), spec.engine.max_cache_tokens
    if guaranteed > size:
        yield f"spec.tenants: got {guaranteed} cache.minTokens together; must fit in engine.maxCacheTokens ({size})"


def _accelerator(spec: DeploymentSpec) -> Iterator[str]:
    if spec.accelerator is None:
        return
    name = spec.accelerator.resource_name
    if spec.engine.device == "cpu":
        yield f'spec.accelerator: got {name}; must be absent where engine.device is "cpu", or make that "auto"'
    if name in spec.resources.requests or name in spec.resources.limits:
        yield f"spec.resources: got {name}; must be in accelerator.resourceName alone"
    count = spec.accelerator.count
    if count > 1 and re.fullmatch(WHOLE_DEVICES, name):
        what_to_do = "an engine uses one device; for more of them raise replicas"
        yield f"spec.accelerator.count: got {count}; must be 1 for {name}: {what_to_do}"


def _resources(resources: ResourcesSpec) -> Iterator[str]:
    for name, request in resources.requests.items():
        limit = resources.limits.get(name)
        if limit is not None and value_of(request) > value_of(limit):
            yield f"spec.resources.requests.{name}: got {request}; must be at most its limit ({limit})"


def _endpoints(spec: DeploymentSpec) -> Iterator[str]:
    ports = spec.endpoints.port_range
    path, given = "spec.endpoints.portRange", f"{ports.first}-{ports.last}"
    if ports.last - ports.first + 1 < len(spec.tenants):
        yield f"{path}: got {given}; must have a port for each of the {len(spec.tenants)} tenants"
    if ports.first <= HTTP_PORT <= ports.last:
        yield f"{path}: got {given}; must leave out {HTTP_PORT}, the port of probes and metrics"
    host, type = spec.endpoints.advertised_host, spec.endpoints.service_type
    path = "spec.endpoints.advertisedHost"
    if host is not None and type == "ClusterIP":
        yield f"{path}: got {host}; must be absent where serviceType is ClusterIP: nothing outside leads to that"
    if host is not None and type == "LoadBalancer" and "{tenant}" not in host:
        yield f"{path}: got {host}; must contain {{tenant}} where serviceType is LoadBalancer: each tenant has its own address"
