"""Becomes another program that ends with the process that started it. Run as a script: launch.py PARENT_PID PROGRAM ARGS...

A script of its own, and of the standard library only, so that it starts in milliseconds and works in a parent with threads
(subprocess's preexec_fn does not).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> None:
    """The kernel sends SIGTERM when the thread that started this process ends; the setting outlives exec. Linux only:
    elsewhere the program is stopped by its parent's own code alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent_pid:  # it ended before the line above
        sys.exit(1)


def main() -> None:
    end_with_parent(int(sys.argv[1]))
    os.umask(0o077)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
