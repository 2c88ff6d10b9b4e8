"""What clients see of one endpoint, through the real supervisor and a forked front."""

from __future__ import annotations

import pytest
from infer_server import protocol

from .conftest import Pod


def test_x(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    client = pod.client(acme)
    assert client.ask("count 3") == "0 1 2 "
    assert client.ask("who") == "acme acme-key"
    assert client.alive()
    assert pod.stop() == 0
