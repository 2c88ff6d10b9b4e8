"""A deployment's and a tenant's name in, the Secret's content out; or why there is none, told so that the reader can act.

Only the Secret is needed. The InferenceDeployment is read to find a name that was not given and to explain what is missing, and
a tenant's people need no right to it: it names all tenants.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from infer_operator import endpoints
from infer_operator.builders import manifest as m
from infer_operator.builders import secret as secrets
from infer_operator.builders import service
from infer_operator.connect.cluster import ConnectError
from infer_operator.kube import POD, RESOURCE, SECRET, ApiError, Kube, KubeError, Object

ASK = "check the names and the namespace, or ask for the rights in manifests/examples/rbac/tenant.yaml"
FIELDS = ("endpoint", "serverPublicKey", "clientPublicKey", "clientSecretKey")
"""of a Secret and of a credentials file; a tenant with keys of its own has only the first two"""
SERVICE_HOST = re.compile(r"[-a-z0-9]+\.(?P<namespace>[-a-z0-9]+)\.svc")
ENDPOINT = re.compile(r"tcp://([-A-Za-z0-9._]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
LONGEST_FIELD = 512
"""of a Secret, in characters"""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Access:
    """What a tenant's Secret says."""

    deployment: str
    tenant: str
    fields: dict[str, str]
    """as in a credentials file"""
    address: tuple[str, int]
    """of the endpoint"""
    namespace: str
    """where the pods are"""
    slot: int
    port: int
    """of the pods"""

    def __repr__(self) -> str:
        return f"Access({self.deployment!r}, {self.tenant!r}, {self.address})"

    def credentials(self, endpoint: str | None = None) -> bytes:
        """The content of a credentials file."""
        fields = self.fields if endpoint is None else self.fields | {"endpoint": endpoint}
        return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"


async def allowed(namespace: str, right: str, request: Awaitable[Answer], way_out: str = ASK) -> Answer:
    """`right` as in `kubectl auth can-i`. Raises ConnectError."""
    try:
        return await request
    except ApiError as error:
        if error.status == 401:
            raise ConnectError(
                f"the API server does not accept the credentials of this kubeconfig: log in again ({error.message})"
            ) from error
        if error.status == 403:
            raise ConnectError(f"you may not {right} in namespace {namespace}: {way_out}") from error
        raise ConnectError(f"the API server refuses to {right} in namespace {namespace}: {error}") from error
    except KubeError as error:
        raise ConnectError(f"the API server does not answer: {error.__cause__ or error}") from error


async def find_access(kube: Kube, namespace: str, deployment: str | None, tenant: str) -> Access:
    """Raises ConnectError."""
    name = deployment or await _deployment_of(kube, namespace, tenant)
    secret_name = secrets.tenant_secret_name(name, tenant)
    found = await allowed(namespace, f"get secrets/{secret_name}", kube.read(SECRET, namespace, secret_name))
    if found is None:
        raise ConnectError(await _why_no_secret(kube, namespace, name, tenant))
    return read_access(found, namespace, name, tenant)


def read_access(found: Object, namespace: str, deployment: str, tenant: str) -> Access:
    """Whoever may write Secrets there has written it: nothing in it leads anywhere but to an endpoint. Raises ConnectError."""
    try:
        record = secrets.read_record(found)
        fields = {key: base64.b64decode(found["data"][key]).decode() for key in FIELDS if key in found["data"]}
        if not ENDPOINT.fullmatch(fields["endpoint"]) or max(map(len, fields.values())) > LONGEST_FIELD:
            raise ValueError("its endpoint is not tcp://HOST:PORT, or a part of it is too long")
        url = urlsplit(fields["endpoint"])
        address = str(url.hostname), int(url.port or "")
    except (secrets.SecretDamagedError, KeyError, ValueError) as error:
        name = secrets.tenant_secret_name(deployment, tenant)
        raise ConnectError(f"Secret {namespace}/{name} is not a tenant's: {error}") from error
    inside = SERVICE_HOST.fullmatch(address[0])
    pods = inside["namespace"] if inside else namespace
    return Access(deployment, tenant, fields, address, pods, endpoints.slot_of(record.uid), record.port)


async def ready_pod(kube: Kube, access: Access) -> str | None:
    """The name of one that serves the tenant: of those that its Service leads to, or else, should that not be set up, of all."""
    selector = f"{m.DEPLOYMENT_LABEL}={access.deployment},{m.COMPONENT_LABEL}={m.SERVER}"
    pods, _ = await allowed(access.namespace, "list pods", kube.list(POD, selector, access.namespace))
    label = service.slot_label(access.slot)
    ready = [pod for pod in pods if _is_ready(pod)]
    # The same one for the same pods: it has this tenant's cache.
    best = min(ready, key=lambda pod: (label not in pod["metadata"]["labels"], pod["metadata"]["name"]), default=None)
    return None if best is None else str(best["metadata"]["name"])


def _is_ready(pod: Object) -> bool:
    if "deletionTimestamp" in pod["metadata"]:
        return False
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))


async def why_no_pod(kube: Kube, access: Access) -> str:
    """With what the deployment says of itself, for a reader who may know it."""
    told = f"no pod of {access.deployment} is ready in namespace {access.namespace}"
    found = await _read_if_allowed(kube, access.namespace, access.deployment)
    return told if found is None else f"{told}: {_ready_message(found)}"


async def why_no_endpoint(kube: Kube, access: Access, pod: str) -> str:
    found = await _read_if_allowed(kube, access.namespace, access.deployment)
    if found is not None and _is_suspended(found, access.tenant):
        return _suspended(access.deployment, access.tenant)
    return (
        f"pod {pod} has no endpoint for tenant {access.tenant!r} on port {access.port}: it may be suspended, or the pod is "
        "about to end: try again"
    )


async def _read_if_allowed(kube: Kube, namespace: str, name: str) -> Object | None:
    try:
        return await kube.read(RESOURCE, namespace, name)
    except KubeError:  # no right to it, as is usual for a tenant's people
        return None


async def _deployment_of(kube: Kube, namespace: str, tenant: str) -> str:
    right = f"list {RESOURCE.plural}.{m.GROUP}"
    way_out = f"name the deployment: inferengine connect DEPLOYMENT --tenant {tenant}"
    resources, _ = await allowed(namespace, right, kube.list(RESOURCE, "", namespace), way_out)
    found = [one for one in resources if _named(one, tenant)]
    having = [str(one["metadata"]["name"]) for one in found]
    if len(having) == 1:
        if _is_suspended(found[0], tenant):  # pods may not have heard of it yet
            raise ConnectError(_suspended(having[0], tenant))
        return having[0]
    if having:
        raise ConnectError(
            f"tenant {tenant!r} is in several deployments of namespace {namespace}: name {_sorted(having)}"
        )
    if not resources:
        raise ConnectError(f"no {RESOURCE.name} in namespace {namespace}: give another --namespace")
    known = "; ".join(f"{one['metadata']['name']} has {', '.join(_tenants(one))}" for one in resources)
    raise ConnectError(f"no deployment in namespace {namespace} has a tenant {tenant!r}: {known}")


async def _why_no_secret(kube: Kube, namespace: str, name: str, tenant: str) -> str:
    missing = f"there is no Secret {name}.{tenant} in namespace {namespace}"
    try:
        found = await kube.read(RESOURCE, namespace, name)
        others = (await kube.list(RESOURCE, "", namespace))[0] if found is None else []
    except KubeError:
        return f"{missing}: is the deployment's name right, and the tenant's?"
    if found is None:
        names = [one["metadata"]["name"] for one in others]
        there = f"there is {_sorted(names)}" if names else "there is none: give another --namespace"
        return f"no {RESOURCE.name} {name!r} in namespace {namespace}; {there}"
    if tenant not in _tenants(found):
        return f"{name} has no tenant {tenant!r}; there is {_sorted(_tenants(found))}"
    if _says_ready(found):
        return f"{missing} yet: the operator makes a missing one within half a minute: try again"
    return f"{missing} yet: {_ready_message(found)}"


def _named(resource: Object, tenant: str) -> list[Object]:
    return [one for one in resource["spec"]["tenants"] if one["name"] == tenant]


def _is_suspended(resource: Object, tenant: str) -> bool:
    return any(one.get("suspend") for one in _named(resource, tenant))


def _suspended(deployment: str, tenant: str) -> str:
    return f"tenant {tenant!r} of {deployment} is suspended"


def _tenants(resource: Object) -> list[str]:
    return [str(tenant["name"]) for tenant in resource["spec"]["tenants"]]


def _says_ready(resource: Object) -> bool:
    conditions = resource.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _ready_message(resource: Object) -> str:
    if _says_ready(resource):
        return "it says Ready"
    for one in resource.get("status", {}).get("conditions", ()):
        if one["type"] == "Ready":
            return str(one["message"] or one["reason"])
    return "no operator has looked at it yet"


def _sorted(names: list[str]) -> str:
    return ", ".join(sorted(names))
