"""The Deployment: a resource in, its pods' template out. Every pod serves every tenant.

The template holds nothing that depends on tenants, so no change of tenants restarts a pod; and of the configuration only its
hash, so that every change of that does.
"""

from __future__ import annotations

from typing import Any

from infer_operator.builders import configmap, model, secret
from infer_operator.builders import manifest as m
from infer_operator.builders.merge import merge
from infer_operator.builders.podspec import (
    canonical_pod,
    container_security,
    pod_security,
    secret_volume,
)
from infer_operator.quantity import canonical
from infer_operator.spec import DeploymentSpec, QuotaStoreSpec
from infer_operator.state import Resource

CONFIG_ANNOTATION = f"{m.GROUP}/config-hash"

PRE_STOP_SECONDS = 5
"""between "this pod ends" and SIGTERM: time for every node to lead new connections elsewhere"""
STOP_MARGIN_SECONDS = 15
"""beyond the drain: what the supervisor gives its processes to end by themselves, and then some"""
SHARED_MEMORY = "1Gi"
FETCH_DEADLINE_SECONDS = 3600
"""until a rollout counts as stuck; Kubernetes' own ten minutes are too short for a large model's download"""

CONTAINER = "server"


def deployment(resource: Resource, context: m.Context) -> m.Manifest:
    spec = resource.deployment.spec
    selector = m.pod_labels(resource, "server")
    content: dict[str, Any] = {
        "selector": {"matchLabels": selector},
        "revisionHistoryLimit": 3,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": _rolling_update(spec)},
        "template": pod_template(resource, context),
    }
    if model.is_remote(spec.model):
        content["progressDeadlineSeconds"] = FETCH_DEADLINE_SECONDS
    if spec.replicas is not None:  # else the field is whoever's who sets it
        content["replicas"] = spec.replicas
    return m.manifest(resource, "apps/v1", "Deployment", m.server_name(resource), {"spec": content})


def pod_template(resource: Resource, context: m.Context) -> dict[str, Any]:
    ours = {
        "metadata": {
            "labels": m.labels(resource, "server"),
            "annotations": {CONFIG_ANNOTATION: configmap.pod_config_hash(resource)},
        },
        "spec": _pod_spec(resource, context),
    }
    merged = merge(ours, resource.deployment.spec.pod_template)
    # What others find the pods by stays as it is.
    merged["metadata"] = merge(merged["metadata"], ours["metadata"])
    merged["spec"] = canonical_pod(merged["spec"])
    return merged


def _rolling_update(spec: DeploymentSpec) -> dict[str, int]:
    """With surge no pod goes before its successor is ready."""
    surge = spec.disruption.max_surge
    return {"maxSurge": surge, "maxUnavailable": 0 if surge else spec.disruption.max_unavailable}


def _pod_spec(resource: Resource, context: m.Context) -> dict[str, Any]:
    spec = resource.deployment.spec
    pod: dict[str, Any] = {
        "serviceAccountName": m.server_name(resource),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": PRE_STOP_SECONDS + spec.drain.seconds + STOP_MARGIN_SECONDS,
        "containers": [_container(resource, context)],
        "volumes": _volumes(resource),
    }
    if model.goes_through_fetch(spec.model):
        pod["initContainers"] = [model.fetch_container(spec, _image(spec, context), _writable_mounts())]
    return pod | _scheduling(spec)


def _container(resource: Resource, context: m.Context) -> dict[str, Any]:
    spec = resource.deployment.spec
    env: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in _environment(spec).items()]
    env.append({"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}})
    return _image(spec, context) | {
        "name": CONTAINER,
        "command": ["python", "-m", "infer_server"],
        "args": ["serve", "--config", f"{configmap.CONFIG_DIRECTORY}/{configmap.POD_FILE}"],
        "env": env,
        "ports": [{"name": "http", "containerPort": m.HTTP_PORT, "protocol": "TCP"}],
        "resources": _resources(spec),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # its last line is in the status
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        "volumeMounts": [
            {"name": "config", "mountPath": configmap.CONFIG_DIRECTORY, "readOnly": True},
            {"name": "keys", "mountPath": configmap.KEYS_DIRECTORY, "readOnly": True},
            {"name": "store-url", "mountPath": configmap.STORE_URL_FILE.rpartition("/")[0], "readOnly": True},
            *model.claim_mounts(spec.model),
            *_writable_mounts(),
        ],
        **_probes(spec),
    }


def _environment(spec: DeploymentSpec) -> dict[str, str]:
    found = {"XDG_CACHE_HOME": model.CACHE_DIRECTORY, "HOME": "/tmp", "PYTHONUNBUFFERED": "1"}
    return found | ({"HF_HUB_OFFLINE": "1"} if model.is_remote(spec.model) else {})  # the init container has fetched it


def _writable_mounts() -> list[dict[str, Any]]:
    return [
        {"name": "models", "mountPath": model.CACHE_DIRECTORY},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]


def _volumes(resource: Resource) -> list[dict[str, Any]]:
    spec, name = resource.deployment.spec, m.server_name(resource)
    return [
        {"name": "config", "configMap": {"name": name, "items": [_item(configmap.POD_FILE, configmap.POD_FILE)]}},
        secret_volume("keys", name, {secret.SERVER_KEY: "server.key", secret.NAMESPACE_KEY: "namespace.key"}),
        _store_url_volume(spec.quota_store, name),
        _models_volume(spec),
        *model.volumes(spec),
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}},
        {"name": "tmp", "emptyDir": {}},
    ]


def _store_url_volume(store: QuotaStoreSpec, keys_name: str) -> dict[str, Any]:
    file = configmap.STORE_URL_FILE.rpartition("/")[2]
    if store.url_secret_ref is not None:
        return secret_volume("store-url", store.url_secret_ref.name, {store.url_secret_ref.key: file})
    return secret_volume("store-url", keys_name, {secret.STORE_URL: file})


def _models_volume(spec: DeploymentSpec) -> dict[str, Any]:
    cache = spec.model_cache
    if cache.claim_name is not None:
        return {"name": "models", "persistentVolumeClaim": {"claimName": cache.claim_name}}
    limit = {} if cache.size_limit is None else {"sizeLimit": canonical(cache.size_limit)}
    return {"name": "models", "emptyDir": limit}


def _item(key: str, path: str) -> dict[str, str]:
    return {"key": key, "path": path}


def _image(spec: DeploymentSpec, context: m.Context) -> dict[str, Any]:
    policy = {} if context.image_pull_policy is None else {"imagePullPolicy": context.image_pull_policy}
    return {"image": spec.engine.image or context.image, **policy}


def _resources(spec: DeploymentSpec) -> dict[str, Any]:
    requests, limits = dict(spec.resources.requests), dict(spec.resources.limits)
    if spec.accelerator is not None:  # the API server makes an extended resource's request equal to its limit
        name = spec.accelerator.resource_name
        requests[name] = limits[name] = spec.accelerator.count
    found = {"requests": requests, "limits": limits}
    return {kind: amounts for kind, amounts in found.items() if amounts}


def _probes(spec: DeploymentSpec) -> dict[str, Any]:
    """/healthz: the processes turn. /readyz: tenants can be served; a store that is away makes no pod restart."""
    probes, startup_period = spec.probes, 2

    def probe(path: str, period: int, failures: int) -> dict[str, Any]:
        return {
            "httpGet": {"path": path, "port": "http"},
            "periodSeconds": period,
            "timeoutSeconds": probes.timeout_seconds,
            "failureThreshold": failures,
        }

    return {
        "startupProbe": probe("/healthz", startup_period, -(-probes.startup_seconds // startup_period)),
        "readinessProbe": probe("/readyz", probes.period_seconds, 1),
        "livenessProbe": probe("/healthz", probes.period_seconds, probes.failure_threshold),
    }


def _scheduling(spec: DeploymentSpec) -> dict[str, Any]:
    wanted = spec.scheduling
    fields: dict[str, Any] = {
        "nodeSelector": wanted.node_selector,
        "tolerations": list(wanted.tolerations),
        "affinity": wanted.affinity,
        "topologySpreadConstraints": list(wanted.topology_spread_constraints),
        "priorityClassName": wanted.priority_class_name,
        "runtimeClassName": wanted.runtime_class_name,
    }
    return {name: value for name, value in fields.items() if value}
