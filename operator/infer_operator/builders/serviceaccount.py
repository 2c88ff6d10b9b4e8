"""The identity of a deployment's pods. It has no rights and no token: the pods never talk to the API server."""

from __future__ import annotations

from infer_operator.builders import manifest as m
from infer_operator.state import Resource


def account(resource: Resource) -> m.Manifest:
    content = {"automountServiceAccountToken": False}
    return m.manifest(resource, "v1", "ServiceAccount", m.server_name(resource), content)
