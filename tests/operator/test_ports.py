"""Ports are ours from the moment we have claimed them, and a pod can listen on them all the same."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from infer_operator.backends.ports import Ports

HOST = "127.0.0.1"


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ports() -> Iterator[Ports]:
    ports = Ports(HOST)
    yield ports
    ports.close()


@pytest.fixture
def others() -> Iterator[Ports]:
    ports = Ports(HOST)
    yield ports
    ports.close()


def listen(port: int) -> socket.socket:
    """As a front does."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    listener.listen()
    return listener


def test_a_claimed_port_is_nobody_else_s(ports: Ports, others: Ports, port: int) -> None:
    assert ports.claim(port)
    assert not others.claim(port)
    ports.release(port)
    assert others.claim(port)


def test_a_pod_listens_on_a_claimed_port_again_and_again(ports: Ports, others: Ports, port: int) -> None:
    assert ports.claim(port)
    for _ in range(3):
        with listen(port) as listener, socket.create_connection((HOST, port)) as client:
            accepted, _ = listener.accept()
            accepted.close()
            assert client.recv(1) == b""
            assert not others.claim(port)
            assert not others.reclaim(port)
        assert not others.claim(port)


def test_a_port_in_use_cannot_be_claimed(ports: Ports, port: int) -> None:
    with listen(port):
        assert not ports.claim(port)
        assert not ports.reclaim(port)
    assert ports.claim(port)
    assert ports.reclaim(port)


def test_connections_that_have_just_ended_do_not_keep_us_from_our_own_port(ports: Ports, port: int) -> None:
    with listen(port) as listener, socket.create_connection((HOST, port)) as client:
        accepted, _ = listener.accept()
        accepted.close()  # the server closes first: its side waits a minute
        assert client.recv(1) == b""
    assert not ports.claim(port)
    assert ports.reclaim(port)
    listen(port).close()
