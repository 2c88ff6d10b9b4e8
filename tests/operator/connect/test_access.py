"""A Secret as anybody may have written it who can write there: it leads to an endpoint, or it is refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from infer_operator.connect.access import Access, read_access
from infer_operator.connect.cluster import ConnectError
from infer_operator.keys import curve_pair


def secret(endpoint: str = "tcp://demo-acme-1.models.svc:5555", **more: str) -> dict[str, Any]:
    public, own = curve_pair()
    fields = {"endpoint": endpoint, "serverPublicKey": public, "clientPublicKey": public, "clientSecretKey": own} | more
    return {
        "metadata": {
            "name": "demo.acme",
            "namespace": "models",
            "labels": {"inferengine.dev/tenant": "acme"},
            "annotations": {"inferengine.dev/tenant-uid": "u", "inferengine.dev/port": "20000"},
        },
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in fields.items()},
    }


def read(found: dict[str, Any]) -> Access:
    return read_access(found, "team", "demo", "acme")


@pytest.mark.parametrize(
    ("endpoint", "address", "namespace"),
    [
        ("tcp://demo-acme-1.models.svc:5555", ("demo-acme-1.models.svc", 5555), "models"),
        ("tcp://models.example.com:5555", ("models.example.com", 5555), "team"),
        ("tcp://[fd00::1]:31000", ("fd00::1", 31000), "team"),
    ],
)
def test_where_it_leads(endpoint: str, address: tuple[str, int], namespace: str) -> None:
    access = read(secret(endpoint))
    assert (access.address, access.namespace) == (address, namespace)


@pytest.mark.parametrize(
    "endpoint",
    [
        "ipc://x.y.svc:1/socket",
        "tcp://x.kube-system%2Fsecrets.svc:5555",
        "tcp://x.y.svc:5555/../z",
        "tcp://x.y.svc:99999",
        "tcp://\x1b[2Jx:5555",
        "tcp://" + "x" * 70_000 + ":5555",
    ],
)
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ConnectError, match=r"^Secret team/demo\.acme is not a tenant's: ") as error:
        read(secret(endpoint))
    assert len(str(error.value)) < 200


def test_a_field_that_no_pipe_holds() -> None:
    """The chat reads it from a pipe that is filled before: it would wait for ever."""
    with pytest.raises(ConnectError, match="too long"):
        read(secret(serverPublicKey="x" * 70_000))
