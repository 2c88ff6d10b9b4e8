"""The state directory of a local deployment: files in and out, whole or not at all, readable by their owner only.

resource.json             the last good resource, its uid and generation
ledger.json               highest document revision, ports in quarantine
keys/                     server.key (CURVE secret), namespace.key; made once
tenants/<tenant>.json     uid, port, client key pair; made once
credentials/<tenant>.json what the tenant's client needs
pod.json status.json      the pod's configuration; the last status
store/ logs/ lock         the quota store's data; output of the processes; who runs `up`
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from infer_operator.state import Resource

LOCK_SECONDS = 0.5
"""`status` holds the lock for a moment to see whether it is free: no reason to refuse."""

Content = TypeVar("Content", bound=Struct)


class Ledger(Struct, frozen=True, kw_only=True, rename="camel"):
    last_revision: int = 0
    retired_ports: dict[int, float] = {}


class StateDirError(Exception):
    """The directory cannot be used; the message says which file, why, and the way out."""


class AlreadyRunningError(Exception):
    def __init__(self, pid: str) -> None:
        super().__init__(f"it is already running (process {pid})")
        self.pid = pid


class StateDir:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def prepare(self) -> None:
        """Make it, closed to others. Raises StateDirError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            for name in ("keys", "tenants", "credentials", "store", "logs"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateDirError(
                f"state directory {self.path}: cannot be made: {error.strerror}; choose another with --state-dir"
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One `up` a deployment. The kernel gives the lock back when we end, however. Raises AlreadyRunningError."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise AlreadyRunningError(os.pread(descriptor, 20, 0).decode() or "unknown")
                time.sleep(0.02)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def owner(self) -> int | None:
        """The process that runs `up` here now, if any."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if _lock(descriptor, fcntl.LOCK_SH):
                return None
            pid = os.pread(descriptor, 20, 0)
            return int(pid) if pid.isdigit() else None
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def read_as(self, name: str, type: type[Content]) -> Content | None:
        """Raises StateDirError for a damaged file."""
        content = self.read(name)
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateDirError(
                f"{self.path / name}: damaged: {error}; restore it, or move it away and what it holds is made anew"
            ) from error

    def names(self, folder: str) -> list[str]:
        """`folder/file` of each file in it, sorted. Half-written ones begin with a dot and don't count."""
        return sorted(f"{folder}/{path.name}" for path in (self.path / folder).glob("[!.]*.json"))

    def write(self, name: str, content: bytes) -> None:
        """Durable and whole: a reader sees the old content or the new one, also after a crash."""
        target = self.path / name
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def write_as(self, name: str, value: Struct) -> None:
        self.write(name, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def once(self, name: str, content: str) -> str:
        """The line in the file, written now if there is none."""
        kept = self.read(name)
        if kept is None:
            self.write(name, content.encode() + b"\n")
            return content
        return kept.decode().strip()

    def resource(self) -> Resource | None:
        return self.read_as("resource.json", Resource)

    def ledger(self) -> Ledger:
        return self.read_as("ledger.json", Ledger) or Ledger()


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
