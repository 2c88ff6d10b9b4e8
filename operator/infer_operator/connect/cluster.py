"""Whose cluster: the options of the command line in, an API server that can be asked out.

As kubectl does it: the files of --kubeconfig or KUBECONFIG, the context of --context, its namespace; in a pod without any, the
pod's service account. Tokens of exec plugins are renewed while the connection is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.aio import client, config

from infer_operator.kube import Kube

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
NO_CLUSTER = "no cluster is known: give --kubeconfig FILE, set KUBECONFIG, or write ~/.kube/config"


class ConnectError(Exception):
    """Why there is no connection, and the way out; for people."""


@dataclass(frozen=True, slots=True)
class Cluster:
    api: client.ApiClient
    kube: Kube
    namespace: str
    """the one of the context"""


@contextlib.asynccontextmanager
async def open_cluster(kubeconfig: str | None, context: str | None) -> AsyncIterator[Cluster]:
    """Raises ConnectError."""
    settings = client.Configuration()
    files = _files(kubeconfig, needed=context is not None)
    if files:
        loader = await _load_files(files, context, settings)
        namespace = loader.current_context["context"].get("namespace") or "default"
        renewal = asyncio.ensure_future(config.refresh_token(loader, settings))
    else:
        namespace, renewal = _load_pod(settings), None
    async with client.ApiClient(settings) as api:
        try:
            yield Cluster(api, Kube(api), namespace)
        finally:
            if renewal is not None:
                renewal.cancel()


def _files(kubeconfig: str | None, needed: bool) -> str:
    """As KUBECONFIG names them; empty: there are none. Raises ConnectError."""
    files = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube/config")
    if any(Path(file).is_file() for file in files.split(os.pathsep)):
        return files
    if kubeconfig or needed:
        raise ConnectError(f"kubeconfig {files}: no such file")
    return ""


async def _load_files(files: str, context: str | None, settings: client.Configuration) -> Any:
    try:
        loader = await config.load_kube_config(
            config_file=files, context=context, client_configuration=settings, persist_config=False
        )
    except Exception as error:  # whatever the loader meets in a file that people write: YAML, keys, types
        where = f", context {context}" if context else ""
        raise ConnectError(f"kubeconfig {files}{where}: {error}") from error
    if not settings.api_key and not settings.cert_file:  # a plugin that fails is logged by the loader, and that is all
        user = loader.current_context["context"].get("user")
        raise ConnectError(f"kubeconfig {files}: user {user!r} gives no token and no certificate: log in first")
    return loader


def _load_pod(settings: client.Configuration) -> str:
    try:
        config.load_incluster_config(settings)
        return NAMESPACE_FILE.read_text().strip()
    except (config.ConfigException, OSError) as error:
        raise ConnectError(NO_CLUSTER) from error
