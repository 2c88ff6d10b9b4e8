"""The configuration of one pod: a JSON file, written by the operator (a ConfigMap) or by `inferengine up`, read once at start.

It changes only with a restart; all that changes live is in the desired-state document (contract/document.py).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Port = Annotated[int, Meta(ge=1, le=65535)]


class PodConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    namespace: str
    deployment: str
    model: str
    """URI: a directory, package://…, hf://…, s3://…, https://…"""
    model_digest: str | None = None
    """sha256:…: what the model's content must be; None: anything, or looked at already"""
    model_name: str
    store_url: str = ""
    """redis://, rediss:// or unix:// URL of the quota store"""
    store_url_file: str | None = None
    """instead: a file with the URL in one line, for a URL with a password in it. `load` reads it into store_url."""
    pod_name: str = ""
    """under which it reports what it serves. Empty: `load` takes $POD_NAME, or the host's name"""
    server_key_file: str
    """CURVE secret key of the deployment, Z85, one line"""
    namespace_key_file: str
    """32 bytes, hexadecimal: the key of the BLAKE2b that mints cache namespaces"""
    engine: dict[str, Any] = {}
    """fields of infer_engine EngineConfig, snake_case"""
    listen_host: str = "127.0.0.1"
    http_host: str = "127.0.0.1"
    http_port: Port = 9400
    """/healthz, /readyz, /metrics"""
    drain_seconds: Annotated[float, Meta(ge=0)] = 30.0
    max_metric_tenants: Annotated[int, Meta(ge=1)] = 500
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


def load(path: str | Path) -> PodConfig:
    """Raises OSError or msgspec.ValidationError, which names the path of what is wrong."""
    config = msgspec.json.decode(Path(path).read_bytes(), type=PodConfig)
    if (config.store_url == "") == (config.store_url_file is None):
        raise msgspec.ValidationError("give one of `$.storeUrl` and `$.storeUrlFile`")
    pod_name = config.pod_name or os.environ.get("POD_NAME") or socket.gethostname()
    url = config.store_url if config.store_url_file is None else Path(config.store_url_file).read_text().strip()
    return msgspec.structs.replace(config, store_url=url, store_url_file=None, pod_name=pod_name)
