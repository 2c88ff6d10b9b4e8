"""Resource -> the configuration of its pods, as the server reads it (infer_server/config.py; a contract test compares the two).

Everything in it takes effect with a restart. What may change without one is in the desired-state document.
"""

from __future__ import annotations

from typing import Any

import msgspec

from infer_operator.spec import ModelSpec
from infer_operator.state import Key, Resource


def pod_config(
    key: Key,
    resource: Resource,
    *,
    store_url: str | None = None,
    store_url_file: str | None = None,
    server_key_file: str,
    namespace_key_file: str,
    host: str,
    http_port: int,
    pod_name: str | None = None,
    model_place: str | None = None,
) -> bytes:
    """JSON, indented for people. The store's URL itself, or the file in which pods find it where it holds a password.

    `pod_name`: where one pod alone reads it; None: each pod's environment tells it its own.
    `model_place`: where something else has brought the model, and looked at its digest; None: the server does both.
    """
    name = {} if pod_name is None else {"podName": pod_name}
    store = {"storeUrl": store_url} if store_url_file is None else {"storeUrlFile": store_url_file}
    model = resource.deployment.spec.model
    fields: dict[str, Any] = {
        "namespace": key.namespace,
        "deployment": key.name,
        **_model_fields(model, model_place),
        "modelName": model.name,
        **store,
        **name,
        "serverKeyFile": server_key_file,
        "namespaceKeyFile": namespace_key_file,
        "engine": engine_config(resource),
        "listenHost": host,
        "httpHost": host,
        "httpPort": http_port,
        "drainSeconds": resource.deployment.spec.drain.seconds,
    }
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"


def _model_fields(model: ModelSpec, place: str | None) -> dict[str, str]:
    if place is not None:
        return {"model": place}
    uri = model.uri if model.revision is None else f"{model.uri}@{model.revision}"
    return {"model": uri} | ({} if model.digest is None else {"modelDigest": model.digest})


def engine_config(resource: Resource) -> dict[str, Any]:
    """The fields of the engine's configuration, in its own names; what is absent in the resource is left to the engine."""
    spec = resource.deployment.spec
    fields = {name: getattr(spec.engine, name) for name in spec.engine.__struct_fields__ if name != "image"}
    fields |= {"dtype": spec.model.dtype, "max_model_len": spec.model.max_model_len}
    return {name: value for name, value in fields.items() if value is not None}
