"""Plain dictionaries in, plain dictionaries out, over kubernetes.aio's connection and authentication.

Its models, Watch and LeaderElection are left alone: a pydantic object for every object costs two to three times the CPU, and
the latter two end with a connection error.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import aiohttp
from kubernetes.aio import client, config

Object = dict[str, Any]

FIELD_MANAGER = "inferengine-operator"
_OURS = {"fieldManager": FIELD_MANAGER}
JSON = "application/json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
REQUEST_SECONDS = 30.0
PAGE_ITEMS = 500
REFUSALS = (400, 403, 422)
"""What the API server answers to content that it will not take today either: invalid, over a quota, against a policy."""
WATCH_SECONDS = (540, 660)
"""A watch ends after about ten minutes; the list that follows it is the sweep. Spread, so that not all end at once."""
# A bookmark comes once a minute: longer silence is a dead connection, or a resourceVersion from the future, which the server
# answers with silence. The client's own default would cut every watch at 300 s.
WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=150)


class KubeError(Exception):
    """The API server did not do what was asked: try again later. It is no bug of ours, so it is logged without traceback."""

    expected = True


class UnreachableError(KubeError):
    """No answer, or none in time. What was asked may or may not have taken effect."""


class ApiError(KubeError):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        """as in the server's Status object: NotFound, AlreadyExists, Conflict, Invalid, Expired ..."""
        self.message = message


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    api_version: str
    plural: str

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        root = "/api" if self.api_version == "v1" else "/apis"
        where = ("namespaces", namespace) if namespace else ()
        return "/".join([root, self.api_version, *where, self.plural, *filter(None, (name, subresource))])


RESOURCE = Kind("InferenceDeployment", "inferengine.dev/v1alpha1", "inferencedeployments")
SECRET = Kind("Secret", "v1", "secrets")
CONFIG_MAP = Kind("ConfigMap", "v1", "configmaps")
POD = Kind("Pod", "v1", "pods")
DEPLOYMENT = Kind("Deployment", "apps/v1", "deployments")
NAMESPACE = Kind("Namespace", "v1", "namespaces")
EVENT = Kind("Event", "v1", "events")
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")
CHILDREN = (
    DEPLOYMENT,
    Kind("StatefulSet", "apps/v1", "statefulsets"),
    Kind("Service", "v1", "services"),
    CONFIG_MAP,
    Kind("ServiceAccount", "v1", "serviceaccounts"),
    Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims"),
    Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
    Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
)
"""What the operator makes and watches. Secrets are not among them: they are read by name, one at a time."""
OPTIONAL = (Kind("PodMonitor", "monitoring.coreos.com/v1", "podmonitors"),)
"""What it makes and watches where the server knows them: definitions may come and go while it runs."""


async def connect() -> client.ApiClient:
    """From inside a pod, or by KUBECONFIG. Raises KubeError; the caller closes it."""
    settings = client.Configuration()
    # Looking up proxies in the environment costs two thread hops a request.
    settings.client_session_kwargs = {"trust_env": bool(os.environ.get("HTTPS_PROXY"))}
    try:
        config.load_incluster_config(settings)
    except config.ConfigException:
        try:
            await config.load_kube_config(client_configuration=settings)
        except (config.ConfigException, OSError) as error:
            message = f"neither in a pod nor is there a usable KUBECONFIG: {error}"
            raise KubeError(message) from error
    return client.ApiClient(settings)


class Kube:
    """One API server. `on_request(verb, kind)` is told of each request that is sent."""

    def __init__(self, api: client.ApiClient, on_request: Callable[[str, str], None] = lambda verb, kind: None) -> None:
        self._api = api
        self._on_request = on_request

    async def read(self, kind: Kind, namespace: str, name: str) -> Object | None:
        self._on_request("get", kind.name)
        try:
            return _trimmed(await self._request("GET", kind.path(namespace, name)))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def version(self, kind: Kind, namespace: str, name: str) -> str | None:
        """The resourceVersion alone, without content: from the server's cache, so it may be a moment old."""
        self._on_request("get", kind.name)
        path = kind.path(namespace, name)
        try:
            found = await self._request("GET", path, query={"resourceVersion": "0"}, accept=METADATA_ONLY)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return str(found["metadata"]["resourceVersion"])

    async def exists(self, kind: Kind, namespace: str = "") -> bool:
        """Whether the server knows the kind."""
        self._on_request("list", kind.name)
        try:
            await self._request("GET", kind.path(namespace), query={"limit": "1"})
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def create(self, manifest: Object, kind: Kind) -> Object:
        """Raises ApiError 409 if there is one of that name."""
        self._on_request("create", kind.name)
        path = kind.path(manifest["metadata"]["namespace"])
        return _trimmed(await self._request("POST", path, manifest, query=_OURS))

    async def replace(self, manifest: Object, kind: Kind) -> Object:
        """With the resourceVersion that `manifest` carries: 409 to the slower of two."""
        self._on_request("update", kind.name)
        path = kind.path(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        return _trimmed(await self._request("PUT", path, manifest, query=_OURS))

    async def apply(self, manifest: Object, kind: Kind, *, subresource: str = "", force: bool = True) -> Object:
        """Server-side apply: what is sent becomes ours; fields that are not sent stay with their owners.

        With `force` also fields that others own; without it, 409 tells of them. A uid or resourceVersion in the metadata is
        a precondition.
        """
        self._on_request("patch", f"{kind.name}/{subresource}" if subresource else kind.name)
        path = kind.path(manifest["metadata"]["namespace"], manifest["metadata"]["name"], subresource)
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        return _trimmed(await self._request("PATCH", path, manifest, "application/apply-patch+yaml", query))

    async def merge(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        """JSON merge patch; a uid or resourceVersion in its metadata is a precondition (409)."""
        self._on_request("patch", kind.name)
        content_type = "application/merge-patch+json"
        path = kind.path(namespace, name)
        return _trimmed(await self._request("PATCH", path, patch, content_type, _OURS))

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """This very object: one of the same name that was made since stays."""
        self._on_request("delete", kind.name)
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        try:
            await self._request("DELETE", kind.path(namespace, name), options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def list(self, kind: Kind, selector: str = "", namespace: str = "") -> tuple[list[Object], str]:
        """All items, and the resourceVersion from which to watch."""
        self._on_request("list", kind.name)
        items: list[Object] = []
        query = {"labelSelector": selector, "limit": str(PAGE_ITEMS)}
        while True:
            page = await self._request("GET", kind.path(namespace), query=query)
            # items of a list lack both
            items += [
                _trimmed({"apiVersion": kind.api_version, "kind": kind.name} | item) for item in page["items"] or ()
            ]
            following = page["metadata"].get("continue")
            if not following:
                return items, page["metadata"]["resourceVersion"]
            query["continue"] = following

    async def watch(
        self, kind: Kind, version: str, selector: str = "", namespace: str = ""
    ) -> AsyncIterator[tuple[str, Object]]:
        """Events after `version`, bookmarks among them, until the server ends the stream. ApiError 410: list again."""
        self._on_request("watch", kind.name)
        query = {
            "labelSelector": selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),
        }
        response = await self._open("GET", kind.path(namespace), query=query, limit=WATCH_TIMEOUT)
        try:
            async for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":  # such a stream begins with 200
                    told = event["object"]
                    raise ApiError(told.get("code", 500), told.get("reason", ""), told.get("message", ""))
                yield event["type"], _trimmed(event["object"])
        finally:
            response.close()

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = JSON,
        query: Mapping[str, str] = MappingProxyType({}),
        accept: str = JSON,
    ) -> Object:
        response = await self._open(method, path, body, content_type, query, accept=accept)
        try:
            answer: Object = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{method} {path}: {error!r}") from error
        return answer

    async def _open(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = JSON,
        query: Mapping[str, str] = MappingProxyType({}),
        limit: float | aiohttp.ClientTimeout = REQUEST_SECONDS,
        accept: str = JSON,
    ) -> aiohttp.ClientResponse:
        parameters = await self._api.param_serialize(
            method,
            path,
            query_params=[(name, value) for name, value in query.items() if value],
            body=body,
            auth_settings=["BearerToken"],
            header_params={"Accept": accept, "Content-Type": content_type},
        )
        try:
            answer = await self._api.call_api(*parameters, _request_timeout=limit)
            response: aiohttp.ClientResponse = answer.response
            if response.status < 400:
                return response
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{method} {path}: {error!r}") from error
        raise _as_error(response, content)  # call_api itself raises for no status


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """An object is up to 1.5 MiB a line, far more than the reader's own `readline` takes."""
    rest: list[bytes] = []
    try:
        while part := await response.content.readany():
            *lines, last = part.split(b"\n")
            for line in lines:
                yield b"".join([*rest, line])
                rest.clear()
            rest.append(last)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UnreachableError(f"watch {response.url.path}: {error!r}") from error


def _as_error(response: aiohttp.ClientResponse, content: bytes) -> ApiError:
    reason, message = response.reason or "", content.decode(errors="replace")[:500]
    try:
        told = json.loads(content)
        reason, message = told["reason"], told["message"]
    except (ValueError, KeyError, TypeError):  # a proxy's page, say
        pass
    return ApiError(response.status, reason, message)


def _trimmed(object: Object) -> Object:
    """Without managedFields: a third of what a store would hold."""
    object.get("metadata", {}).pop("managedFields", None)
    return object
