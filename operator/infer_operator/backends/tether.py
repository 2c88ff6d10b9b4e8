"""Becomes a program that dies with its parent: `python tether.py PARENT_PID SIGNAL PROGRAM ARGUMENT...`

The kernel sends SIGNAL when the parent's thread that started this ends, also by kill -9; an exec keeps that wish.
It is done here, in a process of its own, since Python code between fork and exec (preexec_fn) may deadlock a parent with threads.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, death_signal, *program = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):  # it died before the wish was known
        sys.exit(1)
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
