"""The embedded store: it keeps what it was told, is private, is alone, and ends with its owner."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from infer_engine.errors import ConfigError
from infer_server.quota import EmbeddedStore, QuotaLimits, QuotaStore, QuotaUnavailable
from infer_server.quota.embedded import default_directory

PATIENCE = 20.0


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def ended(pid: int) -> bool:
    """Also true for a zombie that nobody has waited for yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


async def test_open_without_url_starts_a_store_and_stops_it(tmp_path: Path) -> None:
    async with QuotaStore.open(directory=tmp_path / "store", timeout_seconds=5) as store:
        await store.set_limits("acme", QuotaLimits(tokens_per_day=100))
        reservation = await store.reserve("acme", "r1", prompt_tokens=20, max_tokens=10)
        await reservation.settle(computed_tokens=20, cached_tokens=0, output_tokens=5)
    assert not answers(tmp_path / "store/store.sock")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
async def test_what_it_kept_is_there_after_a_restart(tmp_path: Path, kind: signal.Signals) -> None:
    with EmbeddedStore(tmp_path) as server:
        async with QuotaStore.open(server.url, timeout_seconds=5) as store:
            await store.set_limits("acme", QuotaLimits(tokens_per_month=100))
            await store.reserve("acme", "r1", prompt_tokens=20, max_tokens=10)
            await store._connection.client.execute_command("WAITAOF", 1, 0, 5_000)
        assert server.pid is not None
        os.kill(server.pid, kind)
        wait_until(lambda: ended(server.pid or 0))
    assert kind == signal.SIGTERM or (tmp_path / "store.sock").exists()  # a killed one leaves its socket behind
    async with QuotaStore.open(directory=tmp_path, timeout_seconds=5) as store:
        usage = await store.usage("acme")
        assert (usage.limits.tokens_per_month, usage.month.reserved) == (100, 30)
        assert (await store.reserve("acme", "r1", prompt_tokens=20, max_tokens=10)).reserved_tokens == 30


def test_it_is_private_bounded_and_off_the_network(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir(mode=0o755)
    with EmbeddedStore(directory) as server:
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / "store.sock").stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o077 == 0 for path in directory.rglob("*") if path.name != "store.log")
        with redis.Redis(unix_socket_path=server.url.removeprefix("unix://"), decode_responses=True) as client:
            config = client.config_get("port", "maxmemory", "maxmemory-policy", "appendonly", "appendfsync")
        assert config.pop("maxmemory") == str(256 << 20)
        assert config == {
            "port": "0",
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
        }


def test_one_store_for_a_directory(tmp_path: Path) -> None:
    with (
        EmbeddedStore(tmp_path) as server,
        pytest.raises(ConfigError, match=f"another embedded store runs.*{server.url}"),
    ):
        EmbeddedStore(tmp_path).start()
    with EmbeddedStore(tmp_path):
        pass  # free again


def test_a_path_too_long_for_a_socket_says_what_to_do(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100)
    with pytest.raises(
        ConfigError, match=r"allows 107: choose a shorter state directory \(--state-dir, or XDG_STATE_HOME\)"
    ):
        EmbeddedStore(directory)
    assert not directory.exists()


def test_the_longest_path_works(tmp_path: Path) -> None:
    base = Path(os.path.relpath(tmp_path)).absolute()
    directory = base / ("d" * (107 - len(str(base)) - len("//store.sock")))
    with EmbeddedStore(directory) as server:
        assert len(server.url.removeprefix("unix://")) == 107


def test_a_shared_directory_is_refused() -> None:
    with pytest.raises(ConfigError, match="open to others"):
        EmbeddedStore("/tmp")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        EmbeddedStore(tmp_path / "file")


def test_a_damaged_file_is_reported_with_the_log(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path):
        pass
    manifest = next((tmp_path / "appendonlydir").glob("*.manifest"))
    manifest.write_text("nonsense\n")
    with pytest.raises(QuotaUnavailable, match="ended while it started"), EmbeddedStore(tmp_path):
        pass


def test_the_default_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/x")
    assert default_directory() == Path("/var/lib/x/inferengine/store")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_directory() == Path.home() / ".local/state/inferengine/store"


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are of Linux")
def test_it_does_not_outlive_a_killed_owner(tmp_path: Path) -> None:
    code = f"""
import sys, time
from infer_server.quota import EmbeddedStore
with EmbeddedStore({str(tmp_path)!r}) as store:
    print(store.pid, flush=True)
    time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: ended(pid))
    with EmbeddedStore(tmp_path):
        pass  # the directory is free


async def test_run_embedded_is_the_store_until_sigterm(tmp_path: Path) -> None:
    code = f"from infer_server.quota import run_embedded; run_embedded({str(tmp_path)!r})"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(tmp_path / "store.sock"))
        async with QuotaStore.open(f"unix://{tmp_path}/store.sock", timeout_seconds=5) as store:
            await store.set_limits("acme", QuotaLimits(tokens_per_day=100))
            server = await store._connection.client.info("server")
            assert server["process_id"] == process.pid
        with pytest.raises(ConfigError, match="another embedded store"):
            EmbeddedStore(tmp_path).start()
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
    async with QuotaStore.open(directory=tmp_path, timeout_seconds=5) as store:
        assert (await store.usage("acme")).limits == QuotaLimits(tokens_per_day=100)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
