"""Record -> what a tenant's client needs to connect: exactly the arguments of the Python client."""

from __future__ import annotations

import msgspec

from infer_operator.state import TenantRecord


def endpoint(record: TenantRecord, host: str) -> str:
    return f"tcp://{host}:{record.port}"


def client_keys(record: TenantRecord) -> dict[str, str]:
    """None where the tenant has keys of its own: absent, so that nobody takes an empty one for a key."""
    if not record.client_public_key:
        return {}
    return {"clientPublicKey": record.client_public_key, "clientSecretKey": record.client_secret_key}


def credentials(record: TenantRecord, host: str, server_public_key: str) -> bytes:
    """JSON. It holds the tenant's secret key, unless that is the tenant's own."""
    fields = {"endpoint": endpoint(record, host), "serverPublicKey": server_public_key, **client_keys(record)}
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"
