"""A miniature pod as a fixture: real processes, free ports, keys of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from infer_server import protocol

SCRIPT = Path(__file__).with_name("miniature_pod.py")


def eventually(check: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """The first true result of `check`."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return result


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Key:
    public: str
    secret: str

    @classmethod
    def new(cls) -> Key:
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


@dataclass
class Tenant:
    name: str
    port: int
    keys: dict[str, Key]
    """User-Id -> key"""

    @property
    def wish(self) -> dict[str, Any]:
        return {"port": self.port, "users": {key.public: user for user, key in self.keys.items()}}


@dataclass
class PlainClient:
    """A DEALER without our library: what anybody might write, and some would send."""

    socket: zmq.Socket[bytes]
    encoding: protocol.Encoding = "json"

    def send(self, op: str, rid: str | bytes | None = None, body: Any = None) -> None:
        header = protocol.encode({"op": op} if rid is None else {"op": op, "rid": rid}, self.encoding)
        self.raw(header) if body is None else self.raw(header, protocol.encode(body, self.encoding))

    def raw(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def receive(self, seconds: float = 20.0) -> tuple[dict[str, Any], dict[str, Any]]:
        assert self.socket.poll(seconds * 1000), "no answer"
        header, body = (
            msgspec.json.decode(f) if f[:1] == b"{" else msgspec.msgpack.decode(f) for f in self.socket.recv_multipart()
        )
        return header, body

    def until_over(self, rid: str | bytes) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        messages = [self.receive()]
        while not (messages[-1][0]["op"] in ("END", "ERR") and messages[-1][0].get("rid") == rid):
            messages.append(self.receive())
        return messages

    def ask(self, prompt: str, rid: str | bytes = "r") -> str:
        """The text of a whole answer."""
        self.send("REQ", rid, {"prompt": prompt})
        return "".join(body["text"] for header, body in self.until_over(rid) if header["op"] == "TOK")

    def alive(self) -> bool:
        self.send("PING", "p")
        while (header := self.receive()[0])["op"] != "PONG":
            continue
        return bool(header["rid"] == "p")


@dataclass
class Pod:
    folder: Path
    server_key: Key
    context: zmq.Context[zmq.Socket[bytes]]
    tenants: dict[str, Tenant] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    sockets: list[zmq.Socket[bytes]] = field(default_factory=list)

    def start(self) -> None:
        config = {
            "namespace": "local",
            "deployment": "test",
            "model": "none",
            "modelName": "none",
            "storeUrl": "unix:///none",
            "serverKeyFile": str(self.folder / "server.key"),
            "namespaceKeyFile": "none",
            "drainSeconds": 10,
        }
        (self.folder / "server.key").write_text(self.server_key.secret + "\n")
        (self.folder / "pod.json").write_text(json.dumps(config))
        with (self.folder / "log").open("ab") as log:
            argv = [sys.executable, str(SCRIPT), "serve", "--config", str(self.folder / "pod.json")]
            self.process = subprocess.Popen(argv, stderr=log)

    def add(self, *names: str) -> list[Tenant]:
        """Tenants with one key each, served once this returns."""
        added = [Tenant(name, free_port(), {f"{name}-key": Key.new()}) for name in names]
        fronts = len(self.fronts())
        self.tenants |= {tenant.name: tenant for tenant in added}
        self.publish()
        for tenant in added:
            self.await_port(tenant)
        eventually(lambda: len(self.fronts()) == fronts + len(added), "each has a front")  # forked after it listens
        return added

    def publish(self) -> None:
        temporary = self.folder / "wishes.tmp"
        temporary.write_text(json.dumps({tenant.name: tenant.wish for tenant in self.tenants.values()}))
        temporary.rename(self.folder / "wishes.json")

    def await_port(self, tenant: Tenant) -> None:
        def listens() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", tenant.port)) == 0

        eventually(listens, f"{tenant.name} listens")

    def socket(self, tenant: Tenant, key: Key | None = None, **options: int) -> zmq.Socket[bytes]:
        """A connecting DEALER; not waited for. Options by the lower-case names of zmq's constants."""
        dealer = self.context.socket(zmq.DEALER)
        self.sockets.append(dealer)
        key = key or next(iter(tenant.keys.values()))
        dealer.curve_serverkey = self.server_key.public.encode()
        dealer.curve_publickey, dealer.curve_secretkey = key.public.encode(), key.secret.encode()
        dealer.linger = 0
        for name, value in options.items():
            setattr(dealer, name, value)
        dealer.connect(f"tcp://127.0.0.1:{tenant.port}")
        return dealer

    def client(self, tenant: Tenant, key: Key | None = None, encoding: protocol.Encoding = "json") -> PlainClient:
        return PlainClient(self.socket(tenant, key), encoding)

    def events(self, event: str, **fields: str) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        wanted = {"event": event, **fields}
        return [note for note in map(json.loads, lines) if note | wanted == note]

    def children(self) -> dict[int, str]:
        """Processes below the supervisor: id -> command line."""
        assert self.process is not None
        found: dict[int, str] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if parent == self.process.pid:
                found[int(folder.name)] = command
        return found

    def pid_of(self, role: str) -> int:
        return next(pid for pid, command in self.children().items() if f" {role} " in command)

    def fronts(self) -> list[int]:
        return [pid for pid, command in self.children().items() if " serve " in command]

    def stop(self, seconds: float = 20.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with zmq.Context() as context:
        pod = Pod(tmp_path, Key.new(), context)
        pod.start()
        try:
            yield pod
        finally:
            for sock in pod.sockets:
                sock.close(linger=0)
            if pod.process is not None and pod.process.poll() is None:
                pod.process.send_signal(signal.SIGTERM)
                try:
                    pod.process.wait(15)
                finally:
                    pod.process.kill()
                    pod.process.wait()
            print((pod.folder / "log").read_text())


def gone(pid: int) -> bool:
    """Whether a process has ended; whoever inherits it may not have reaped it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
