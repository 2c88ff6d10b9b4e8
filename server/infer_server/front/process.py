"""How the supervisor makes its children: forked fronts and spawned programs, none of which outlives it.

In flow an argument vector or a function; out flows a process id. Call it from a process without threads.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
from collections.abc import Callable, Collection, Sequence

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4


def spawn(argv: Sequence[str], pass_fds: Collection[int]) -> int:
    """Start a program that inherits standard input, output, error and `pass_fds`. Returns its process id."""

    def program() -> None:
        for fd in pass_fds:
            os.set_inheritable(fd, True)
        os.execv(argv[0], list(argv))

    return fork(program)


def fork(child: Callable[[], None]) -> int:
    """Run `child` in a forked process of its own session, which ends when `child` returns or raises.

    The child leaves by os._exit: nothing of its parent (exit handlers, open sockets, buffers) is run or flushed by it.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _detach_from(parent)
        child()
        code = 0
    except BaseException:
        log.exception("process %d ends", os.getpid())
    finally:
        os._exit(code)


def _detach_from(parent: int) -> None:
    """The parent's signals are not the child's, and a Ctrl-C at the terminal is for the supervisor alone."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def harden(keep_fds: Collection[int], data_limit: int, max_fds: int) -> None:
    """First thing in a front, before any ZeroMQ context exists: it handles bytes of strangers.

    data_limit: bytes of writable memory; an unfinished multipart message can grow past every limit of ZeroMQ's own.
    max_fds: also bounds what connections without a key can take, some 20 KiB each until their handshake times out.
    """
    _prctl(PR_SET_DUMPABLE, 0)  # no core file with keys in it, no ptrace by a neighbour of the same user
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))
    max_fds = min(max_fds, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (max_fds, max_fds))
    # libzmq draws its first routing id from rand() and never seeds it: unseeded, a client could guess its neighbours' ids
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd not in keep_fds:
            try:
                os.close(fd)
            except OSError:  # the descriptor by which the directory was listed
                continue


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
