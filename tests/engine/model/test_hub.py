"""hf:// against a stand-in for the hub on loopback: what is fetched, what isn't, and what is said when it fails."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from infer_engine.config import EngineConfig
from infer_engine.model.fetch.digest import content_digest
from infer_engine.model.loader import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/tiny"


class Hub(ThreadingHTTPServer):
    """Serves the files of one repository, revision `main` and its commit, the way the hub does."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        if path == f"/api/models/{NAME}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": _git_hash(body)}
                for name, body in self.server.files.items()
            ]
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(entries).encode(), with_body)
        if path.startswith(f"/api/models/{NAME}"):
            revision = path.removeprefix(f"/api/models/{NAME}").removeprefix("/revision/")
            if revision not in ("", "main", COMMIT):
                return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"", with_body)
            siblings = [{"rfilename": name} for name in self.server.files]
            body = json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode()
            return self._send(200, {"Content-Type": "application/json"}, body, with_body)
        prefix = f"/{NAME}/resolve/{COMMIT}/"
        if path.startswith(prefix) and path.removeprefix(prefix) in self.server.files:
            name = path.removeprefix(prefix)
            body = self.server.files[name]
            if with_body:
                self.server.fetched.append(name)
            headers = {"ETag": f'"{_git_hash(body)}"', "X-Repo-Commit": COMMIT}
            return self._send(200, headers, body, with_body)
        if path.startswith("/api/models/org/gated"):
            return self._send(403, {"X-Error-Code": "GatedRepo"}, b"", with_body)
        return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"", with_body)

    def _send(self, status: int, headers: dict[str, str], body: bytes, with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def _git_hash(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@pytest.fixture
def hub(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> Iterator[Hub]:
    directory = tmp_path / "repository"
    tiny_model("llama").save_pretrained(directory)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    unwanted = {
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"code",
        "onnx/model.safetensors": b"x",
        "README.md": b"-",
    }
    server = Hub({**files, **unwanted})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def resolve(tmp_path: Path) -> Callable[..., str]:
    """resolve_model in a process of its own, because the library reads its settings on import: directory or error."""

    def run(uri: str, endpoint: str, digest: str | None = None) -> str:
        code = (
            "import sys\n"
            "from infer_engine.errors import ModelLoadError\n"
            "from infer_engine.model.source import resolve_model\n"
            f"try: print(resolve_model({uri!r}, {digest!r}))\n"
            "except ModelLoadError as error: print(error)\n"
            "assert 'torch' not in sys.modules\n"
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout.strip()

    return run


def test_fetches_weights_and_settings_only(hub: Hub, resolve: Callable[..., str]) -> None:
    directory = Path(resolve(f"hf://{NAME}@main", hub.url))
    assert sorted(hub.fetched) == ["config.json", "generation_config.json", "model.safetensors"]
    assert load_model(directory, EngineConfig(device="cpu")).model.info.num_layers == 3
    assert resolve(f"hf://{NAME}@{COMMIT}", hub.url) == str(directory)
    assert len(hub.fetched) == 3  # all were there


def test_without_a_hub_the_local_copy_serves(hub: Hub, resolve: Callable[..., str]) -> None:
    directory = resolve(f"hf://{NAME}", hub.url)
    hub.shutdown()
    hub.server_close()
    assert resolve(f"hf://{NAME}", hub.url) == directory
    assert "can't be reached" in resolve("hf://org/other", hub.url)


def test_what_was_damaged_since_is_fetched_anew(hub: Hub, resolve: Callable[..., str]) -> None:
    directory = Path(resolve(f"hf://{NAME}", hub.url))
    weights = directory / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    assert resolve(f"hf://{NAME}", hub.url) == str(directory)
    assert hub.fetched.count("model.safetensors") == 2
    assert weights.read_bytes() == hub.files["model.safetensors"]
    os.truncate(weights, 100)
    hub.shutdown()
    hub.server_close()
    assert resolve(f"hf://{NAME}", hub.url).startswith(f"{weights}: ")


def test_a_digest_is_kept(hub: Hub, resolve: Callable[..., str]) -> None:
    directory = Path(resolve(f"hf://{NAME}", hub.url))
    digest = content_digest(directory)
    assert resolve(f"hf://{NAME}", hub.url, digest) == str(directory)
    fetched, other = len(hub.fetched), "sha256:" + "0" * 64
    assert f"its digest is {digest}, model.digest asks for {other}" in resolve(f"hf://{NAME}", hub.url, other)
    assert len(hub.fetched) == fetched  # what is there is what the hub has
    weights = directory / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert resolve(f"hf://{NAME}", hub.url, digest) == str(directory)
    assert len(hub.fetched) == 2 * fetched
    assert content_digest(directory) == digest


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://org/unknown", "no such model"),
        (f"hf://{NAME}@v9", "no revision 'v9'"),
        ("hf://org/gated", "access is gated"),
        ("hf://a/b/c", "not a model name"),
    ],
)
def test_failures_say_what_to_do(uri: str, message: str, hub: Hub, resolve: Callable[..., str]) -> None:
    answer = resolve(uri, hub.url)
    assert answer.startswith(uri)
    assert message in answer
