"""Record -> what a tenant's client needs to connect: exactly the arguments of the Python client."""

from __future__ import annotations

import msgspec

from infer_operator.state import TenantRecord


def endpoint(record: TenantRecord, host: str) -> str:
    return f"tcp://{host}:{record.port}"


def credentials(record: TenantRecord, host: str, server_public_key: str) -> bytes:
    """JSON. It holds the tenant's secret key."""
    fields = {
        "endpoint": endpoint(record, host),
        "serverPublicKey": server_public_key,
        "clientPublicKey": record.client_public_key,
        "clientSecretKey": record.client_secret_key,
    }
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"
