"""One child process of ours: started, watched, restarted with back-off, stopped. Its output goes to a log file.

It dies with us whatever happens (tether.py), and it is in a session of its own, so that Ctrl-C in a terminal reaches only us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from infer_operator.backends import tether

BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
"""A process that ran this long starts with the shortest back-off again."""
LOG_TAIL_BYTES = 16384


class Process:
    """Used by one event loop. `start` and `stop` come in pairs; `exit_code` tells when it ended by itself."""

    def __init__(self, name: str, argv: list[str], log: Path, death_signal: signal.Signals) -> None:
        self.name = name
        self.log = log
        self.failures = 0
        """ends in a row that came soon after a start"""
        self._argv = argv
        self._death_signal = death_signal
        self._child: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self._started_at = 0.0
        self._restart_at = 0.0

    @property
    def pid(self) -> int | None:
        return self._child.pid if self.running and self._child is not None else None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.returncode is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and where it was not started or was stopped."""
        return None if self._child is None else self._child.returncode

    async def start(self) -> None:
        assert not self.running
        argv = [
            sys.executable,
            "-I",
            "-S",
            tether.__file__,
            str(os.getpid()),
            str(int(self._death_signal)),
            *self._argv,
        ]
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            self._log_start = os.fstat(descriptor).st_size
            self._child = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, start_new_session=True
            )
        finally:
            os.close(descriptor)
        self._started_at = time.monotonic()

    def ended(self) -> float:
        """Note that it ended by itself; how many seconds to wait before `restart_due`."""
        if time.monotonic() - self._started_at >= HEALTHY_SECONDS:
            self.failures = 0
        delay: float = min(BACKOFF_SECONDS * 2**self.failures, MAX_BACKOFF_SECONDS)
        self.failures += 1
        self._restart_at = time.monotonic() + delay
        self._sweep()
        self._child = None
        return delay

    @property
    def restart_due(self) -> bool:
        return self._child is None and time.monotonic() >= self._restart_at

    async def stop(self, seconds: float, hurry: asyncio.Event) -> bool:
        """SIGTERM, then SIGKILL after `seconds` or as soon as `hurry` is set. True if it went by itself."""
        if self._child is None:
            return True
        child, gently = self._child, True
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            hurried = asyncio.ensure_future(hurry.wait())
            waited = asyncio.ensure_future(child.wait())
            await asyncio.wait({hurried, waited}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            gently = waited.done()
            hurried.cancel()
            self._sweep()
            await waited
        self._child = None
        return gently

    def _sweep(self) -> None:
        """Kill what is left of its process group: it is the leader, so the group's number is its pid."""
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def last_words(self, lines: int = 8) -> list[str]:
        """The end of what it has logged since its last start."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()][-lines:]
