"""The deployment's own quota store, where the resource names none: one Valkey behind a Service, with a password of its own.

A StatefulSet of one, since that never runs two pods at once on one volume. A password is in no command line and no ConfigMap:
the server reads an ACL file from the keys Secret, the pods and the operator a URL.
"""

from __future__ import annotations

from typing import Any

from infer_operator.builders import manifest as m
from infer_operator.builders import secret, service
from infer_operator.builders.podspec import canonical_pod, container_security, pod_security, secret_volume
from infer_operator.quantity import canonical_amount
from infer_operator.state import Resource

DATA_DIRECTORY = "/var/lib/inferengine"
ACL_DIRECTORY = "/etc/inferengine"
STOP_SECONDS = 15
REQUESTS = {"cpu": "50m", "memory": "64Mi"}
MEMORY_LIMIT = "512Mi"
"""twice what the server may fill with data (infer_server/quota/embedded.py): rewriting its file may take a copy"""


def is_embedded(resource: Resource) -> bool:
    return resource.deployment.spec.quota_store.url_secret_ref is None


def store_objects(resource: Resource, context: m.Context) -> list[m.Manifest]:
    if not is_embedded(resource):
        return []
    claim = _claim(resource)
    return [*([] if claim is None else [claim]), service.store_service(resource), _stateful_set(resource, context)]


def _claim(resource: Resource) -> m.Manifest | None:
    embedded = resource.deployment.spec.quota_store.embedded
    if embedded is None or embedded.storage is None:
        return None
    storage = embedded.storage
    content: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": canonical_amount(storage.size)}},
    }
    if storage.storage_class_name is not None:
        content["storageClassName"] = storage.storage_class_name
    name = m.store_dotted_name(resource)
    return m.manifest(resource, "v1", "PersistentVolumeClaim", name, {"spec": content}, component="store")


def _stateful_set(resource: Resource, context: m.Context) -> m.Manifest:
    name = m.store_name(resource)
    content = {
        "replicas": 1,
        "serviceName": name,
        "selector": {"matchLabels": m.pod_labels(resource, "store")},
        "template": {"metadata": {"labels": m.labels(resource, "store")}, "spec": _pod_spec(resource, context)},
    }
    return m.manifest(resource, "apps/v1", "StatefulSet", name, {"spec": content}, component="store")


def _pod_spec(resource: Resource, context: m.Context) -> dict[str, Any]:
    name = m.server_name(resource)
    claim = _claim(resource)
    data = {"emptyDir": {}} if claim is None else {"persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
    return canonical_pod(
        {
            "serviceAccountName": name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pod_security(),
            "terminationGracePeriodSeconds": STOP_SECONDS,
            "containers": [_container(resource, context)],
            "volumes": [{"name": "data", **data}, secret_volume("acl", name, {secret.STORE_ACL: "store.acl"})],
        }
    )


def _container(resource: Resource, context: m.Context) -> dict[str, Any]:
    policy = {} if context.image_pull_policy is None else {"imagePullPolicy": context.image_pull_policy}
    probe = {"tcpSocket": {"port": "store"}, "periodSeconds": 5, "timeoutSeconds": 3}
    return {
        "name": "store",
        "image": resource.deployment.spec.engine.image or context.image,
        **policy,
        "command": ["python", "-m", "infer_server.quota.networked"],
        "args": [
            f"--directory={DATA_DIRECTORY}/store",
            f"--port={m.STORE_PORT}",
            f"--acl-file={ACL_DIRECTORY}/store.acl",
        ],
        "ports": [{"name": "store", "containerPort": m.STORE_PORT, "protocol": "TCP"}],
        "resources": {"requests": REQUESTS, "limits": {"memory": MEMORY_LIMIT}},
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # its last line is in the status
        "readinessProbe": probe | {"failureThreshold": 1},
        "livenessProbe": probe | {"failureThreshold": 6},
        "volumeMounts": [
            {"name": "data", "mountPath": DATA_DIRECTORY},
            {"name": "acl", "mountPath": ACL_DIRECTORY, "readOnly": True},
        ],
    }
