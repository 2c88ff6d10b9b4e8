"""A child process: logged, restarted later and later, stopped gently or not, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from infer_operator.backends import process as module
from infer_operator.backends.process import Process

WAIT = "import time\nprint('up', flush=True)\ntime.sleep(600)"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAIT


def python(tmp_path: Path, code: str) -> Process:
    return Process("child", [sys.executable, "-c", code], tmp_path / "child.log", signal.SIGKILL)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    """Ended; it may wait to be reaped by someone else."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_it_runs_logs_and_stops(tmp_path: Path) -> None:
    child = python(tmp_path, WAIT)
    await child.start()
    await until(lambda: child.last_words() == ["up"])
    pid = child.pid
    assert pid is not None
    assert child.running
    assert child.log.stat().st_mode & 0o777 == 0o600
    assert await child.stop(20, asyncio.Event())
    assert gone(pid)
    assert (child.running, child.pid, child.exit_code) == (False, None, None)
    assert await child.stop(20, asyncio.Event())


async def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = python(tmp_path, STUBBORN)
    await child.start()
    await until(lambda: child.last_words() == ["up"])
    assert not await child.stop(0.1, asyncio.Event())


async def test_a_hurry_ends_the_wait(tmp_path: Path) -> None:
    child = python(tmp_path, STUBBORN)
    await child.start()
    await until(lambda: child.last_words() == ["up"])
    hurry = asyncio.Event()
    stopping = asyncio.ensure_future(child.stop(600, hurry))
    await asyncio.sleep(0)
    hurry.set()
    assert not await asyncio.wait_for(stopping, 20)


async def test_the_back_off_grows_and_is_forgotten(tmp_path: Path) -> None:
    child = python(tmp_path, "raise SystemExit(3)")
    delays = []
    for _ in range(8):
        await child.start()
        await until(lambda: child.exit_code is not None)
        assert child.exit_code == 3
        delays.append(child.ended())
        assert not child.restart_due
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30]
    child._started_at = time.monotonic() - module.HEALTHY_SECONDS
    await child.start()
    child._started_at = time.monotonic() - module.HEALTHY_SECONDS
    await until(lambda: child.exit_code is not None)
    assert child.ended() == 0.5
    await until(lambda: child.restart_due)


async def test_last_words_are_those_since_the_last_start(tmp_path: Path) -> None:
    (tmp_path / "child.log").write_text("of an earlier run\n")
    child = python(tmp_path, "print('one\\n\\ntwo\\nthree')")
    await child.start()
    await until(lambda: child.exit_code is not None)
    assert child.last_words() == ["one", "two", "three"]
    assert child.last_words(1) == ["three"]


async def test_what_it_left_behind_is_swept(tmp_path: Path) -> None:
    code = "import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    child = python(tmp_path, code)
    await child.start()
    await until(lambda: child.exit_code is not None)
    orphan = int(child.last_words()[0])
    child.ended()
    await until(lambda: gone(orphan))


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    code = f"""
import asyncio, signal, sys
from pathlib import Path
from infer_operator.backends.process import Process

async def main():
    child = Process("child", [sys.executable, "-c", {WAIT!r}], Path({str(tmp_path / "log")!r}), signal.SIGTERM)
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    asyncio.run(until(lambda: gone(pid)))
