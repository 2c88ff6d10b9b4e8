"""The pod's processes as programs: what they load, and how they say that they can't start."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import pytest

from infer_server import engine_host, ipc
from infer_server.gateway import process as gateway_process


def write_config(directory: Path, **changes: object) -> Path:
    (directory / "namespace.key").write_text("ab" * 32)
    config = {
        "namespace": "local",
        "deployment": "demo",
        "model": str(directory / "no-such-model"),
        "modelName": "tiny",
        "storeUrl": f"unix://{directory}/store.sock",
        "serverKeyFile": str(directory / "server.key"),
        "namespaceKeyFile": str(directory / "namespace.key"),
        **changes,
    }
    path = directory / "pod.json"
    path.write_text(json.dumps(config))
    return path


def start(
    process: str, config: Path, *options: str, pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infer_server", process, "--config", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, pass_fds=pass_fds, timeout=200, check=False)


def test_only_the_engine_process_loads_torch() -> None:
    script = "import sys, infer_server.gateway.process; sys.exit(bool({'torch', 'zmq'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=100).returncode == 0


def test_the_supervisor_loads_no_more_than_it_needs() -> None:
    script = (
        "import sys, infer_server.front.supervisor; "
        "sys.exit(bool({'torch', 'transformers', 'redis', 'aiohttp'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=100).returncode == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"httpPort": 0}, "`$.httpPort`"),
        ({"httpport": 9400}, "unknown field `httpport`"),
        ({"logLevel": "LOUD"}, "`$.logLevel`"),
    ],
)
def test_a_wrong_configuration_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    result = start("serve", write_config(tmp_path, **changes))
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    result = start("store", tmp_path / "none.json")
    assert result.returncode == 2
    assert "none.json" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_store_elsewhere_is_not_started_here(tmp_path: Path) -> None:
    result = start("store", write_config(tmp_path, storeUrl="redis://127.0.0.1:1/0"))
    assert result.returncode == 2
    assert "storeUrl" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no-such-model"),
        ({"engine": {"max_batch_size": 0}}, "max_batch_size: got 0"),
        ({"engine": {"speed": 9}}, "speed: no such engine setting"),
    ],
)
def test_a_model_that_cannot_be_served_is_one_line_and_its_own_exit_code(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        result = start("engine", write_config(tmp_path, **changes), "--link-fd", str(fd), pass_fds=(fd,))
        (told,) = ipc.Deframer().feed(ours.recv(65536))
    refused = msgspec.msgpack.decode(told, type=ipc.EngineToGateway)
    assert isinstance(refused, ipc.ModelRefused)
    assert message in refused.message
    assert result.returncode == engine_host.EXIT_MODEL
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("wrong", ["key", "port", "url"])
def test_a_gateway_that_cannot_start_says_why(wrong: str, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        changes = {"port": {"httpPort": port}, "url": {"storeUrl": "http://secret@x"}}.get(wrong, {})
        config = write_config(tmp_path, **changes)
        if wrong == "key":
            (tmp_path / "namespace.key").write_text("short")
        fd = theirs.fileno()
        result = start("gateway", config, "--control-fd", str(fd), pass_fds=(fd,))
    assert result.returncode == gateway_process.EXIT_CONFIG
    assert {"key": "64 hex digits", "port": str(port), "url": "redis://"}[wrong] in result.stderr
    assert "secret" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_gateway_serves_its_probes_while_the_store_is_away(tmp_path: Path, free_tcp_port: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config = write_config(tmp_path, httpPort=free_tcp_port)
    command = [sys.executable, "-m", "infer_server", "gateway", "--config", str(config), "--control-fd"]
    with ours, theirs:
        fd = theirs.fileno()
        process = subprocess.Popen([*command, str(fd)], pass_fds=(fd,), stderr=subprocess.DEVNULL)
        try:
            status, body = wait_for_answer(f"http://127.0.0.1:{free_tcp_port}/readyz")
        finally:
            process.kill()
            process.wait()
    assert status == 503
    assert "the store does not answer" in json.loads(body)["reasons"]


def wait_for_answer(url: str) -> tuple[int, bytes]:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except urllib.error.URLError:  # not there yet
            assert time.monotonic() < deadline
            time.sleep(0.02)
