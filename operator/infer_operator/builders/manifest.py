"""What all objects of a deployment have in common: names, labels, owner. Pure.

Values are written as the API server gives them back (quantities in canonical form, no empty strings or lists), so that comparing
what is wanted with what is there finds a difference only where there is one.

Names of one kind never collide between deployments of a namespace: a deployment's own name has no dot, and what carries a dash
ends in something that no deployment's name adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from infer_operator import rules
from infer_operator.state import Resource

Manifest = dict[str, Any]

GROUP = "inferengine.dev"
API_VERSION = f"{GROUP}/v1alpha1"
KIND = "InferenceDeployment"
MANAGER = "inferengine-operator"
"""field manager of everything that we apply, and the value of app.kubernetes.io/managed-by"""

DEPLOYMENT_LABEL = f"{GROUP}/deployment"
TENANT_LABEL = f"{GROUP}/tenant"
COMPONENT_LABEL = "app.kubernetes.io/component"
SLOT_LABEL_PREFIX = f"slots.{GROUP}/"
"""and the slot's number: on ready pods, put there by the reconciler, never in the pod template"""

SERVER = "server"
STORE = "store"
Component = Literal["server", "store"]

TENANT_PORT = 5555
HTTP_PORT = rules.HTTP_PORT
STORE_PORT = 6379


@dataclass(frozen=True, slots=True)
class Context:
    """What the objects depend on besides the resource and its tenants: facts of this operator and its cluster."""

    image: str
    """for pods whose resource names no image"""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """None: the cluster's own default"""
    operator_namespace: str | None = None
    """Where the operator's pods run, which may connect to embedded stores; None: it runs outside, any address may."""
    pod_monitors: bool = False
    """whether the cluster knows PodMonitors"""
    store_port: int = STORE_PORT
    """Of a store given by URL: pods may connect to this port."""


def server_name(resource: Resource) -> str:
    """Of the Deployment, ServiceAccount, ConfigMap, keys Secret, PodDisruptionBudget and NetworkPolicy."""
    return resource.deployment.metadata.name


def store_name(resource: Resource) -> str:
    """Of the embedded store's StatefulSet and Service."""
    return f"{resource.deployment.metadata.name}-store"


def store_dotted_name(resource: Resource) -> str:
    """Of the embedded store's NetworkPolicy and PersistentVolumeClaim."""
    return f"{resource.deployment.metadata.name}.store"


def namespace(resource: Resource) -> str:
    found = resource.deployment.metadata.namespace
    assert found is not None, "an API server gives every resource a namespace"
    return found


def labels(resource: Resource, component: Component, tenant: str | None = None) -> dict[str, str]:
    name = resource.deployment.metadata.name
    common = {
        "app.kubernetes.io/name": "inferengine",
        "app.kubernetes.io/instance": name,
        COMPONENT_LABEL: component,
        "app.kubernetes.io/managed-by": MANAGER,
        DEPLOYMENT_LABEL: name,
    }
    return common if tenant is None else common | {TENANT_LABEL: tenant}


def pod_labels(resource: Resource, component: Component) -> dict[str, str]:
    """What selects the pods. Deployments can't change their selector, so this never changes."""
    return {DEPLOYMENT_LABEL: resource.deployment.metadata.name, COMPONENT_LABEL: component}


def manifest(
    resource: Resource,
    api_version: str,
    kind: str,
    name: str,
    content: Mapping[str, Any],
    *,
    component: Component = "server",
    tenant: str | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """An object owned by the resource: the garbage collector deletes it with its owner."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace(resource),
        "labels": labels(resource, component, tenant),
        "ownerReferences": [owner_reference(resource)],
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


def owner_reference(resource: Resource) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": resource.deployment.metadata.name,
        "uid": resource.uid,
        "controller": True,
    }
