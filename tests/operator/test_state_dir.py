"""The state directory: whole files, one owner, and messages for what cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infer_operator import keys, spec
from infer_operator.backends.state_dir import AlreadyRunningError, StateDir, StateDirError
from infer_operator.state import Resource, TenantRecord
from infer_server.contract.state_home import state_home

RECORD = TenantRecord(name="acme", uid="u", port=20000, client_public_key="p" * 40, client_secret_key="s" * 40)


def test_what_is_written_is_read_and_closed_to_others(state: StateDir) -> None:
    state.write_as("tenants/acme.json", RECORD)
    assert state.read_as("tenants/acme.json", TenantRecord) == RECORD
    assert (state.path / "tenants/acme.json").stat().st_mode & 0o777 == 0o600
    assert state.path.stat().st_mode & 0o777 == 0o700
    assert state.names("tenants") == ["tenants/acme.json"]
    state.delete("tenants/acme.json")
    state.delete("tenants/acme.json")
    assert state.read("tenants/acme.json") is None


def test_a_resource_survives_the_file(state: StateDir) -> None:
    quickstart = Path(__file__).parents[2] / "manifests" / "examples" / "quickstart.yaml"
    resource = Resource(uid=keys.uid(), generation=3, deployment=spec.load(quickstart))
    state.write_as("resource.json", resource)
    assert state.resource() == resource


def test_a_failed_write_leaves_the_old_content(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write("pod.json", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        state.write("pod.json", b"new")
    assert state.read("pod.json") == b"old"
    assert [path.name for path in state.path.iterdir() if path.name.startswith(".")] == []


def test_keys_are_made_once(state: StateDir) -> None:
    first = state.once("keys/server.key", keys.curve_pair()[1])
    assert state.once("keys/server.key", keys.curve_pair()[1]) == first
    assert len(keys.curve_public(first)) == 40


@pytest.mark.parametrize("bad", ["", "short", "é" * 40, "\x00" * 40])
def test_a_key_that_is_none(bad: str) -> None:
    with pytest.raises(ValueError, match="not a CURVE secret key"):
        keys.curve_public(bad)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": 1}', b"\xff"])
def test_a_damaged_file_is_named(state: StateDir, content: bytes) -> None:
    state.write("tenants/acme.json", content)
    with pytest.raises(StateDirError, match=r"tenants/acme\.json: damaged: .*move it away") as error:
        state.read_as("tenants/acme.json", TenantRecord)
    assert "\n" not in str(error.value)


def test_a_second_owner_is_refused_and_told_who_it_is(state: StateDir) -> None:
    assert state.owner() is None
    with state.locked():
        assert state.owner() == os.getpid()
        other = StateDir(state.path)
        with pytest.raises(AlreadyRunningError, match=rf"already running \(process {os.getpid()}\)"), other.locked():
            pass
    assert state.owner() is None
    with state.locked():
        pass


def test_a_killed_owner_leaves_no_lock(state: StateDir) -> None:
    script = (
        "import fcntl, os, sys\n"
        f"d = os.open({str(state.path / 'lock')!r}, os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(d, fcntl.LOCK_EX); os.write(d, str(os.getpid()).encode()); print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert state.owner() == child.pid
        child.kill()
    assert state.owner() is None
    with state.locked():
        pass


def test_a_child_does_not_inherit_the_lock(state: StateDir) -> None:
    with state.locked():
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False
        )
    try:
        with state.locked():  # the child closes it in its exec, perhaps a moment after Popen has returned
            pass
    finally:
        child.communicate(b"")


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StateDirError, match=r"state directory .*/file/d: cannot be made: Not a directory; choose another"
    ):
        StateDir(tmp_path / "file" / "d").prepare()


def test_the_state_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert state_home() == Path("/var/state/inferengine")
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", "/home/x")
    assert state_home() == Path("/home/x/.local/state/inferengine")
