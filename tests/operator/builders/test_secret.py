"""Keys and records in, Secrets out, and back."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from infer_operator import keys
from infer_operator.builders import secret

Make = Callable[..., Any]
ENDPOINT = "tcp://demo-acme-00004e20.team.svc:5555"


def text(manifest: Any, name: str) -> str:
    return base64.b64decode(manifest["data"][name]).decode()


def test_keys_come_back_as_they_were_made(make: Make) -> None:
    made = secret.mint_keys()
    manifest = secret.keys_secret(make().resource, made)
    assert manifest["metadata"]["name"] == "demo"
    assert secret.read_keys(manifest) == made
    assert keys.curve_public(made.server_secret_key) == made.server_public_key
    assert text(manifest, "store.url") == f"redis://inferengine:{made.store_password}@demo-store.team.svc:6379"
    assert made.store_password not in text(manifest, "store.acl")
    assert secret.mint_keys() != made


def test_a_tenant_s_secret_is_what_its_client_needs(make: Make) -> None:
    made = make()
    record = made.records["acme"]
    manifest = secret.tenant_secret(made.resource, record, ENDPOINT, "k" * 40)
    assert manifest["metadata"]["name"] == "demo.acme"
    assert manifest["data"].keys() == {"endpoint", "serverPublicKey", "clientPublicKey", "clientSecretKey"}
    assert text(manifest, "endpoint") == ENDPOINT
    assert text(manifest, "serverPublicKey") == "k" * 40
    assert secret.read_record(manifest) == record


def test_a_tenant_with_keys_of_its_own_is_given_none(make: Make) -> None:
    made = make(tenants=[{"name": "acme", "auth": {"publicKeys": ["7" * 40]}}])
    record = msgspec.structs.replace(made.records["acme"], client_public_key="", client_secret_key="")
    manifest = secret.tenant_secret(made.resource, record, ENDPOINT, "k" * 40)
    assert manifest["data"].keys() == {"endpoint", "serverPublicKey"}
    assert secret.read_record(manifest) == record


def test_half_a_pair_is_damage(make: Make) -> None:
    made = make()
    manifest = secret.tenant_secret(made.resource, made.records["acme"], ENDPOINT, "k" * 40)
    del manifest["data"]["clientSecretKey"]
    with pytest.raises(secret.SecretDamagedError, match=r"Secret team/demo.acme: clientSecretKey is missing"):
        secret.read_record(manifest)


@pytest.mark.parametrize("name", ["clientPublicKey", "clientSecretKey"])
@pytest.mark.parametrize("value", ["no key", "x" * 40])
def test_what_is_no_pair_is_damage(make: Make, name: str, value: str) -> None:
    made = make()
    manifest = secret.tenant_secret(made.resource, made.records["acme"], ENDPOINT, "k" * 40)
    manifest["data"][name] = base64.b64encode(value.encode()).decode()
    with pytest.raises(
        secret.SecretDamagedError, match=r"demo.acme: clientSecretKey is not that of .*delete the Secret"
    ):
        secret.read_record(manifest)


@pytest.mark.parametrize("missing", ["server.key", "namespace.key", "store.password"])
def test_damaged_keys_are_told_by_name(make: Make, missing: str) -> None:
    manifest = secret.keys_secret(make().resource, secret.mint_keys())
    for value in (None, "###", base64.b64encode(b"\xff").decode()):
        broken = copy.deepcopy(manifest)
        broken["data"][missing] = value
        if value is None:
            del broken["data"][missing]
        with pytest.raises(secret.SecretDamagedError, match=rf"Secret team/demo: {missing} is missing or no text"):
            secret.read_keys(broken)


def test_a_server_key_that_is_none(make: Make) -> None:
    manifest = secret.keys_secret(make().resource, secret.mint_keys())
    manifest["data"]["server.key"] = base64.b64encode(b"short").decode()
    with pytest.raises(secret.SecretDamagedError, match=r"server.key: not a CURVE secret key.*restore it, or delete"):
        secret.read_keys(manifest)


def test_a_damaged_record_says_what_to_do(make: Make) -> None:
    made = make()
    manifest = secret.tenant_secret(made.resource, made.records["acme"], ENDPOINT, "k" * 40)
    for name, value in (("inferengine.dev/tenant-uid", None), ("inferengine.dev/port", "x")):
        broken = copy.deepcopy(manifest)
        broken["metadata"]["annotations"][name] = value
        if value is None:
            del broken["metadata"]["annotations"][name]
        with pytest.raises(
            secret.SecretDamagedError, match=r"Secret team/demo.acme: .*restore it, or delete the Secret"
        ):
            secret.read_record(broken)
