"""Servers that a model is fetched from, on loopback, and what can go wrong with them: a web server that cuts, stalls, refuses
and redirects; a server of the S3 protocol, and a relay in front of it that cuts and stalls."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60.0
CHUNK = 1 << 16


# --- a web server --------------------------------------------------------------------------------------------------------
@dataclass
class Request:
    path: str
    range: str | None
    authorization: str | None


class Website(ThreadingHTTPServer):
    """Files with strong ETags and ranges, and what a test wants to go wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.cuts: list[int] = []
        """The next answers with a larger body end after so many bytes of it."""
        self.errors: list[int] = []
        """The next answers."""
        self.stall_at: int | None = None
        """Answers send so much of their body, and then nothing as long as `going_on` is not set."""
        self.stalled = threading.Event()
        self.going_on = threading.Event()
        self.has_ranges = True
        self.skips = 0
        """Answers to an open range begin so much later than it."""
        self.redirects: dict[str, tuple[int, str]] = {}
        self.headers: dict[str, str] = {}
        """beside the usual ones, or instead"""
        self.token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self, path: str) -> list[str | None]:
        """The ranges that were asked for of a file, but for looks at its first byte."""
        return [request.range for request in self.requests if request.path == path and request.range != "bytes=0-0"]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    server: Website
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site, path = self.server, self.path.partition("?")[0]
        site.requests.append(Request(path, self.headers["Range"], self.headers["Authorization"]))
        if site.errors:
            return self._send(site.errors.pop(0), b"", {})
        if path in site.redirects:
            status, location = site.redirects[path]
            return self._send(status, b"", {"Location": location})
        if site.token is not None and self.headers["Authorization"] != f"Bearer {site.token}":
            return self._send(401, b"", {})
        content = site.files.get(path)
        if content is None:
            return self._send(404, b"", {})
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"'} | site.headers
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        current = self.headers["If-Range"] in (None, headers.get("ETag"))
        if wanted is None or not current or not site.has_ranges:
            return self._send(200, content, headers)
        start, end = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
        if not wanted[2]:
            start += site.skips
        if start >= len(content):
            return self._send(416, b"", headers)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return self._send(206, content[start:end], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        site, cut = self.server, len(body)
        if site.cuts and len(body) > site.cuts[0]:
            cut = site.cuts.pop(0)
        if site.stall_at is not None and len(body) > site.stall_at:
            self.wfile.write(body[: site.stall_at])
            self.wfile.flush()
            body = body[site.stall_at :]
            site.stalled.set()
            assert site.going_on.wait(SECONDS)
        self.wfile.write(body[:cut])
        if cut < len(body):
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def website() -> Iterator[Website]:
    server = Website()
    with _serving(server):
        yield server
        server.going_on.set()


@pytest.fixture
def other_website() -> Iterator[Website]:
    server = Website()
    with _serving(server):
        yield server


# --- S3 ------------------------------------------------------------------------------------------------------------------
class Relay(socketserver.ThreadingTCPServer):
    """TCP between a client and a server on loopback."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)
        self.port = port
        self.heads: list[str] = []
        """request line and headers of what clients sent"""
        self.cuts: list[int] = []
        """The next connections end when so many bytes of answers came."""
        self.stall_at: int | None = None
        self.stalled = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def ranges(self, name: str) -> list[str | None]:
        found = []
        for head in self.heads:
            if head.startswith("GET ") and head.split()[1].partition("?")[0].endswith(f"/{name}"):
                wanted = re.search(r"(?im)^range: *(\S+)", head)
                found.append(wanted[1] if wanted else None)
        return found


class _Passage(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as upstream:
            answers = threading.Thread(target=self._answers, args=(upstream,), daemon=True)
            answers.start()
            with contextlib.suppress(OSError):
                while data := self.request.recv(CHUNK):
                    self.server.heads.append(data.decode("latin-1"))
                    upstream.sendall(data)
            with contextlib.suppress(OSError):
                upstream.shutdown(socket.SHUT_RDWR)
            answers.join()

    def _answers(self, upstream: socket.socket) -> None:
        relay, passed = self.server, 0
        with contextlib.suppress(OSError):
            while data := upstream.recv(CHUNK):
                if relay.stall_at is not None and passed + len(data) > relay.stall_at:
                    relay.stalled.set()
                    return
                if relay.cuts and passed + len(data) > relay.cuts[0]:
                    relay.cuts.pop(0)
                    break
                self.request.sendall(data)
                passed += len(data)
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)


@dataclass
class Store:
    """A bucket `models` on a real server, behind a relay."""

    relay: Relay
    bucket: Any
    environment: dict[str, str]

    def put(self, name: str, content: bytes) -> None:
        import obstore

        obstore.put(self.bucket, name, content)


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    program = Path(sys.prefix) / "s3-server/bin/moto_server"
    assert program.exists(), f"{program} is missing: run `make setup`"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=output, stderr=output)
    deadline = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    yield port
    process.terminate()
    process.wait(30)


@pytest.fixture
def store(s3_port: int) -> Iterator[Store]:
    from http.client import HTTPConnection

    from obstore.store import S3Store

    connection = HTTPConnection("127.0.0.1", s3_port)
    for method, path in (("POST", "/moto-api/reset"), ("PUT", "/models")):
        connection.request(method, path)
        answer = connection.getresponse()
        assert (answer.status, answer.read() is not None) == (200, True)
    connection.close()
    keys = {"access_key_id": "reader", "secret_access_key": "secret", "region": "us-east-1"}
    direct = f"http://127.0.0.1:{s3_port}"
    bucket = S3Store("models", config={"endpoint": direct, **keys}, client_options={"allow_http": True})
    relay = Relay(s3_port)
    with _serving(relay):
        environment = {
            "AWS_ENDPOINT_URL": relay.url,
            "AWS_ACCESS_KEY_ID": "reader",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        yield Store(relay, bucket, environment)


# --- clients -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inferengine" / "models"


@dataclass
class Fetches:
    """`inferengine fetch` as processes; those that are left are ended."""

    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        code = "import sys; from infer_engine.commands import fetch; sys.exit(fetch(sys.argv[1:]))"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, what it printed, what it said."""
        process = self.start(*arguments, **environment)
        output, said = process.communicate(timeout=SECONDS * 2)
        return process.returncode, output.strip(), said

    def kill(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def fetches(cache: Path) -> Iterator[Fetches]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "INFERENGINE_", "HF_"))}
    made = Fetches(kept)
    yield made
    for process in made.started:
        if process.poll() is None:
            made.kill(process)


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small model in two files, with an index and a tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("model")
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=257, max_position_embeddings=256, eos_token_id=256, bos_token_id=None, **sizes)
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size="64KB")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def content() -> Callable[[int], bytes]:
    """Bytes that don't repeat."""

    def make(size: int) -> bytes:
        return b"GGUF" + hashlib.shake_128(size.to_bytes(8, "little")).digest(size - 4)

    return make
