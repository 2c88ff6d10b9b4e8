"""The client is tried against the miniature pod of the front's tests: the real supervisor and real fronts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ..front.conftest import Key, Pod, Tenant, pod

__all__ = ["pod"]


@pytest.fixture
def credentials(pod: Pod, tmp_path: Path) -> Callable[..., Path]:
    """Writes the file that a tenant is given."""

    def write(tenant: Tenant, key: Key | None = None, server_key: Key | None = None) -> Path:
        key = key or next(iter(tenant.keys.values()))
        path = tmp_path / f"{tenant.name}.json"
        fields = {
            "endpoint": f"tcp://127.0.0.1:{tenant.port}",
            "serverPublicKey": (server_key or pod.server_key).public,
            "clientPublicKey": key.public,
            "clientSecretKey": key.secret,
        }
        path.write_text(json.dumps(fields))
        return path

    return write
