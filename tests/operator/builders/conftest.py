"""A resource as an API server gives it, its tenants' records, and all objects made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infer_operator import builders, keys, spec
from infer_operator.builders import Context, Manifest
from infer_operator.state import Resource, TenantRecord

CONTEXT = Context(image="example.test/inferengine:1")
SECRET = "s" * 40
PUBLIC = keys.curve_public(SECRET)


class Made:
    """What the builders make of a spec; `{"replicas": 2}` is merged over a small one."""

    def __init__(self, context: Context = CONTEXT, *, name: str = "demo", **fields: Any) -> None:
        wanted = {"model": {"uri": "/models/m", "name": "m"}, "tenants": [{"name": "acme"}, {"name": "globex"}]}
        self.resource = Resource(
            uid="0b7c-owner",
            generation=3,
            deployment=spec.from_server(
                {
                    "apiVersion": "inferengine.dev/v1alpha1",
                    "kind": "InferenceDeployment",
                    "metadata": {
                        "name": name,
                        "namespace": "team",
                        "uid": "0b7c-owner",
                        "resourceVersion": "7",
                        "managedFields": [],
                    },
                    "spec": wanted | fields,
                    "status": {"observedGeneration": 2},
                }
            ),
        )
        names = [tenant.name for tenant in self.resource.deployment.spec.tenants]
        self.records = {name: record(name, 20000 + index) for index, name in enumerate(names)}
        self.objects = builders.objects(self.resource, self.records, context)

    def all(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.objects if manifest["kind"] == kind]

    def one(self, kind: str, name: str = "demo") -> Manifest:
        (found,) = (manifest for manifest in self.all(kind) if manifest["metadata"]["name"] == name)
        return found

    @property
    def pod(self) -> dict[str, Any]:
        found: dict[str, Any] = self.one("Deployment")["spec"]["template"]
        return found

    @property
    def container(self) -> dict[str, Any]:
        found: dict[str, Any] = self.pod["spec"]["containers"][0]
        return found

    def volume(self, name: str) -> dict[str, Any]:
        (found,) = (dict(volume) for volume in self.pod["spec"]["volumes"] if volume["name"] == name)
        return found


def record(name: str, port: int) -> TenantRecord:
    uid = f"{port:08x}-0000-4000-8000-000000000000"
    return TenantRecord(name=name, uid=uid, port=port, client_public_key=PUBLIC, client_secret_key=SECRET)


@pytest.fixture
def make() -> Callable[..., Made]:
    return Made
