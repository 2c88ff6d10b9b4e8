"""The first process of a pod: owns the listening sockets, starts everything else, starts again what ends.

In flow signals, ends of children, and the gateway's wishes (which endpoints to serve, with which keys); out flow processes,
each holding its end of a socketpair, and to the gateway the other ends. It makes every socketpair, so who is at the other
end of one is a fact, and no socket has a path.

It has no threads and no ZeroMQ context, because it forks. When the gateway ends, the fronts and the engine end with it: half
a message may have been written to their streams. A front that ends is forked again alone, and so is the engine started.
"""

from __future__ import annotations

import collections
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from infer_server import ipc
from infer_server.config import PodConfig
from infer_server.front import control
from infer_server.front.backoff import Backoff
from infer_server.front.endpoint import Endpoint, listen
from infer_server.front.process import spawn
from infer_server.front.zap import key_error

log = logging.getLogger(__name__)

DRAIN_MARGIN = 5.0
"""seconds beyond the configured drain that the gateway may take to end"""
LAST_WORDS = 2.0
"""seconds for fronts and engine to end by themselves once the gateway has"""
CRASHES_REPORTED_FROM = 3
MAX_DATAGRAM = 1 << 20


class Program:
    """A child started by command line: the gateway or the engine."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid: int | None = None
        self.due = 0.0
        self.backoff = Backoff(first=0.25, most=10.0, healthy=30.0)
        self.started = 0.0
        self.kill_at: float | None = None
        """set once it is expected to end by itself"""


class Supervisor:
    """`run()` serves until SIGTERM or SIGINT and returns the exit code: 0 after an orderly end, 1 after a second signal.

    command: what starts one of our programs; "gateway" or "engine" and its options follow.
    """

    def __init__(
        self,
        config_path: str | Path,
        config: PodConfig,
        *,
        command: Sequence[str] = (sys.executable, "-m", "infer_server"),
    ) -> None:
        self._config_path, self._config, self._command = str(config_path), config, tuple(command)
        self._gateway, self._engine = Program("gateway"), Program("engine")
        self._endpoints: dict[str, Endpoint] = {}
        self._retired: dict[int, tuple[int, float]] = {}
        """fronts no longer wanted: process id -> their port, when to kill them"""
        self._control: socket.socket | None = None
        self._to_gateway: collections.deque[tuple[bytes, socket.socket | None]] = collections.deque()
        self._stop_deadline: float | None = None
        """set once the end has begun: when the next thing that still runs is killed"""
        self._forced = False

    def run(self) -> int:
        wake, wake_writer = socket.socketpair()
        wake.setblocking(False)
        wake_writer.setblocking(False)
        signal.set_wakeup_fd(wake_writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        gc.collect()
        gc.freeze()  # so that the collector of a forked child does not write to pages it shares with us
        with wake, wake_writer:
            while not self._finished():
                self._tend(time.monotonic())
                self._wait(wake)
            signal.set_wakeup_fd(-1)
        log.info("everything has ended")
        return 1 if self._forced else 0

    def _finished(self) -> bool:
        return self._stop_deadline is not None and not self._running()

    def _running(self) -> list[int]:
        pids = [self._gateway.pid, self._engine.pid, *(endpoint.pid for endpoint in self._endpoints.values())]
        return [pid for pid in pids if pid is not None] + list(self._retired)

    # --- one round ----------------------------------------------------------------------------------------------------
    def _wait(self, wake: socket.socket) -> None:
        """Sleep until something happens or is due, then read what came."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        if self._control is not None:
            poll.register(self._control, select.POLLIN | (select.POLLOUT if self._to_gateway else 0))
        fronts = {e.control.fileno(): e for e in self._endpoints.values() if e.control is not None}
        for fd in fronts:
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll(self._timeout_ms(time.monotonic())))
        for fd in ready.keys() & fronts.keys():
            fronts[fd].read_answer()
        if self._control is not None and ready.get(self._control.fileno(), 0) & ~select.POLLOUT:
            self._read_gateway()
        if wake.fileno() in ready:
            numbers = wake.recv(4096)
            self._reap()
            for number in numbers:
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._stop(time.monotonic())

    def _timeout_ms(self, now: float) -> float | None:
        times = [kill_at for _, kill_at in self._retired.values()]
        if self._gateway.kill_at is not None:
            times.append(self._gateway.kill_at)
        if self._stop_deadline is not None:
            times.append(self._stop_deadline)
        else:
            if self._gateway.pid is None:
                times.append(self._gateway.due)
            elif self._engine.pid is None:
                times.append(self._engine.due)
            ports_in_use = {port for port, _ in self._retired.values()}
            times += [e.due for e in self._endpoints.values() if e.pid is None and e.port not in ports_in_use]
        times += [e.keys_deadline for e in self._endpoints.values() if e.keys_deadline is not None]
        return max(0.0, min(times) - now) * 1000 + 1 if times else None

    def _tend(self, now: float) -> None:
        """Start what is due, kill what is overdue, send what waits."""
        for endpoint in self._endpoints.values():
            if endpoint.keys_deadline is not None and now >= endpoint.keys_deadline and endpoint.pid is not None:
                log.warning("front of %s: does not answer, killed", endpoint.tenant)
                endpoint.keys_deadline = None
                _kill(endpoint.pid, signal.SIGKILL)
        if self._gateway.kill_at is not None and now >= self._gateway.kill_at and self._gateway.pid is not None:
            self._gateway.kill_at = None
            _kill(self._gateway.pid, signal.SIGKILL)
        for pid, (_, kill_at) in self._retired.items():
            if now >= kill_at:
                _kill(pid, signal.SIGKILL)
                self._retired[pid] = (self._retired[pid][0], now + 1.0)
        if self._stop_deadline is not None:
            self._press(now)
        else:
            self._start_due(now)
        self._flush_to_gateway()

    def _start_due(self, now: float) -> None:
        if self._gateway.pid is None and now >= self._gateway.due:
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            mine.setblocking(False)
            self._control = mine
            self._spawn(self._gateway, "--control-fd", theirs, now)
        if self._engine.pid is None and self._gateway.pid is not None and now >= self._engine.due:
            gateway_end, engine_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._spawn(self._engine, "--link-fd", engine_end, now)
            self._tell_gateway(ipc.Link("engine"), gateway_end)
        ports_in_use = {port for port, _ in self._retired.values()}
        for endpoint in self._endpoints.values():
            if endpoint.pid is None and now >= endpoint.due and endpoint.port not in ports_in_use:
                self._start_front(endpoint, now)

    def _spawn(self, program: Program, option: str, fd_owner: socket.socket, now: float) -> None:
        fd = fd_owner.fileno()
        argv = [*self._command, program.name, "--config", self._config_path, option, str(fd)]
        program.pid = spawn(argv, [fd])
        program.started = now
        fd_owner.close()
        log.info("%s: started as process %d", program.name, program.pid)

    def _start_front(self, endpoint: Endpoint, now: float) -> None:
        if endpoint.listener is None:
            try:
                endpoint.listener = listen(self._config.listen_host, endpoint.port)
            except OSError as error:
                endpoint.due = now + endpoint.listen_backoff.after(0.0)
                self._report(endpoint, f"can't listen on {error.strerror}")
                return
        gateway_end = endpoint.start(self._config.server_key_file)
        self._tell_gateway(ipc.Link("front", endpoint.tenant), gateway_end)

    def _report(self, endpoint: Endpoint, message: str) -> None:
        log.error("endpoint of %s: %s; tried again", endpoint.tenant, message)
        self._tell_gateway(ipc.EndpointFailed(endpoint.tenant, message), None)

    # --- children end -------------------------------------------------------------------------------------------------
    def _reap(self) -> None:
        """Every child that has ended, also those we never knew: as process 1 we inherit orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, os.waitstatus_to_exitcode(status), time.monotonic())

    def _ended(self, pid: int, code: int, now: float) -> None:
        self._retired.pop(pid, None)
        if pid == self._gateway.pid:
            self._program_ended(self._gateway, code, now)
            self._gateway_ended(now)
        elif pid == self._engine.pid:
            self._program_ended(self._engine, code, now)
        for endpoint in self._endpoints.values():
            if pid == endpoint.pid:
                log.warning("front of %s: ended (%s)", endpoint.tenant, _reason(code))
                endpoint.ended(now)
                if endpoint.backoff.failures >= CRASHES_REPORTED_FROM:
                    self._report(endpoint, f"its front ended {endpoint.backoff.failures} times ({_reason(code)})")

    def _program_ended(self, program: Program, code: int, now: float) -> None:
        program.pid = program.kill_at = None
        delay = program.backoff.after(now - program.started)
        program.due = now + delay
        if self._stop_deadline is None:
            log.error("%s: ended (%s), started again in %.2f s", program.name, _reason(code), delay)

    def _gateway_ended(self, now: float) -> None:
        """Fronts see the end of their streams, tell their clients and end; the next gateway says what to serve."""
        if self._control is not None:
            self._control.close()
            self._control = None
        for _, descriptor in self._to_gateway:
            if descriptor is not None:
                descriptor.close()
        self._to_gateway.clear()
        for endpoint in list(self._endpoints.values()):
            self._retire(endpoint, now + LAST_WORDS)
        if self._engine.pid is not None:
            _kill(self._engine.pid, signal.SIGTERM if self._stop_deadline is not None else signal.SIGKILL)
            self._engine.backoff = Backoff(first=0.25, most=10.0, healthy=30.0)
        if self._stop_deadline is not None:
            self._stop_deadline = now + LAST_WORDS

    def _retire(self, endpoint: Endpoint, kill_at: float) -> None:
        del self._endpoints[endpoint.tenant]
        endpoint.close()
        if endpoint.pid is not None:
            self._retired[endpoint.pid] = (endpoint.port, kill_at)

    # --- the gateway's wishes -----------------------------------------------------------------------------------------
    def _read_gateway(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(MAX_DATAGRAM)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:  # it has ended or is about to; SIGCHLD says when
            self._control.close()
            self._control = None
            if self._stop_deadline is None:
                self._gateway.kill_at = time.monotonic() + LAST_WORDS
            return
        message = msgspec.msgpack.decode(data, type=ipc.GatewayToSupervisor)
        if self._stop_deadline is not None:
            return
        if isinstance(message, ipc.OpenEndpoint):
            self._open(message, time.monotonic())
        elif message.tenant in self._endpoints:
            log.info("endpoint of %s: closed", message.tenant)
            self._retire(self._endpoints[message.tenant], time.monotonic())

    def _open(self, message: ipc.OpenEndpoint, now: float) -> None:
        errors = {key: error for key in message.users if (error := key_error(key)) is not None}
        users = {key: user for key, user in message.users.items() if key not in errors}
        endpoint = self._endpoints.get(message.tenant)
        if endpoint is not None and endpoint.port != message.port:
            self._retire(endpoint, now)
            endpoint = None
        if endpoint is None:
            endpoint = self._endpoints[message.tenant] = Endpoint(message.tenant, message.port, users)
        elif endpoint.users != users:
            endpoint.users = users
            endpoint.tell(control.SetUsers(users), now)
        if errors:
            self._report(endpoint, f"{'; '.join(errors.values())}; served without")

    def _tell_gateway(self, message: Struct, descriptor: socket.socket | None) -> None:
        self._to_gateway.append((msgspec.msgpack.encode(message), descriptor))

    def _flush_to_gateway(self) -> None:
        while self._to_gateway and self._control is not None:
            data, descriptor = self._to_gateway[0]
            try:
                socket.send_fds(self._control, [data], [] if descriptor is None else [descriptor.fileno()])
            except BlockingIOError:
                return
            except OSError:  # it has ended; what waits is thrown away when it is reaped
                return
            self._to_gateway.popleft()
            if descriptor is not None:
                descriptor.close()

    # --- the end ------------------------------------------------------------------------------------------------------
    def _stop(self, now: float) -> None:
        """First: no new connections, the gateway drains. Second: everything is killed."""
        if self._stop_deadline is not None:
            log.warning("second signal: everything is killed")
            self._forced = True
            self._kill_all()
            return
        log.info("stopping: up to %.0f s for requests to end", self._config.drain_seconds)
        self._stop_deadline = now + self._config.drain_seconds + DRAIN_MARGIN
        for endpoint in self._endpoints.values():
            if endpoint.listener is not None:
                endpoint.listener.close()
                endpoint.listener = None
            endpoint.tell(control.LetNobodyIn(), now)
        if self._gateway.pid is not None:
            _kill(self._gateway.pid, signal.SIGTERM)
        else:
            self._gateway_ended(now)

    def _press(self, now: float) -> None:
        """The end takes too long: the gateway first, then all others."""
        if self._stop_deadline is None or now < self._stop_deadline:
            return
        if self._gateway.pid is not None:
            log.warning("gateway: did not end in time, killed")
            _kill(self._gateway.pid, signal.SIGKILL)
        else:
            self._kill_all()
        self._stop_deadline = now + LAST_WORDS

    def _kill_all(self) -> None:
        for pid in self._running():
            _kill(pid, signal.SIGKILL)


def _kill(pid: int, number: signal.Signals) -> None:
    """To a child of ours that has not been reaped, so the id can't be another's."""
    os.kill(pid, number)


def _reason(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
