"""What clients can cause at will is not logged at will."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest

from infer_server.front import limits
from infer_server.front.router import Front

from .conftest import Key


@pytest.fixture
def front() -> Iterator[Front]:
    """One without a process of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        pairs = [socket.socketpair() for _ in range(2)]
        front = Front(
            tenant="acme",
            users={},
            secret_key=Key.new().secret.encode(),
            listener=listener,
            gateway=pairs[0][0],
            supervisor=pairs[1][0],
        )
        yield front
        front._say_farewell()
        for pair in pairs:
            for end in pair:
                end.close()


def test_dropped_connections_are_logged_now_and_then(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(10_000):
            front._log_drop("too many")
    assert limits.LOG_BURST <= len(caplog.records) < 100
    assert caplog.records[0].getMessage() == "front of acme: drops a connection, too many"
