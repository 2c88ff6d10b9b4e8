"""The engine's thread: waits for work, gathers arrivals, steps, and ends in an orderly way.

In: wake-ups, commands and the wish to close, from any thread. Out: calls of `step`, all from one thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from infer_engine.errors import EngineClosedError

logger = logging.getLogger(__name__)


class _Command(NamedTuple):
    action: Callable[[], None]
    done: Future[None]


class StepLoop:
    """`next_due`: when, on time.monotonic, to step though there is no work; None: not at all.
    `gather_s`: how long an idle loop waits after the first arrival, or until `gather_until` requests wait.

    Without `start` there is no thread: commands run in their caller's, and `join` ends everything at once.
    """

    def __init__(
        self,
        *,
        step: Callable[[], None],
        has_work: Callable[[], bool],
        next_due: Callable[[], float | None],
        num_waiting: Callable[[], int],
        on_end: Callable[[BaseException | None], None],
        gather_s: float,
        gather_until: int,
    ) -> None:
        self._step = step
        self._has_work = has_work
        self._next_due = next_due
        self._num_waiting = num_waiting
        self._on_end = on_end
        self._gather_s = gather_s
        self._gather_until = gather_until
        self._condition = threading.Condition()  # guards what follows; notified when there is something to do
        self._commands: list[_Command] = []
        self._is_closing = False
        self._drain = False
        self._has_ended = False
        self._thread: threading.Thread | None = None

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="infer-engine", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        with self._condition:
            self._condition.notify()

    def call(self, action: Callable[[], None]) -> None:
        """Run `action` between two steps and wait for it; its exception is raised here."""
        with self._condition:
            runs_here = self._has_ended or self._thread is None or self._thread is threading.current_thread()
            if not runs_here:
                command = _Command(action, Future())
                self._commands.append(command)
                self._condition.notify()
        if runs_here:
            action()
        else:
            command.done.result()

    def begin_close(self, *, drain: bool) -> None:
        """A second call without `drain` cuts a drain short."""
        with self._condition:
            self._drain = drain and (self._drain or not self._is_closing)
            self._is_closing = True
            self._condition.notify()

    def join(self) -> None:
        if self._thread is None:
            with self._condition:
                is_first, self._has_ended = not self._has_ended, True
            if is_first:
                while self._drain and self._has_work():
                    self._step()
                self._on_end(None)
        elif self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                self._run_commands()
                if self._has_work() or self._is_due():
                    self._step()
            self._on_end(None)
        except BaseException as error:  # whatever it is, callers wait for their last events
            logger.critical("the engine's step loop broke down", exc_info=True)
            with self._condition:
                self._is_closing = True
            self._on_end(error)
        finally:
            self._refuse_commands()

    def _refuse_commands(self) -> None:
        with self._condition:
            self._has_ended = True
            commands, self._commands = self._commands, []
        for command in commands:
            command.done.set_exception(EngineClosedError("the engine was closed"))

    def _wait(self) -> bool:
        """Until there is something to do; False when it is time to end."""
        with self._condition:
            is_idle = not self._has_work()
            while not (self._has_work() or self._commands or self._is_closing or self._is_due()):
                due = self._next_due()
                self._condition.wait(None if due is None else max(0.0, due - time.monotonic()))
            if is_idle and self._has_work() and not self._commands:
                self._gather()
            return not self._is_closing or (self._drain and self._has_work())

    def _is_due(self) -> bool:
        due = self._next_due()
        return due is not None and due <= time.monotonic()

    def _gather(self) -> None:
        until = time.monotonic() + self._gather_s
        while not self._is_closing and self._num_waiting() < self._gather_until:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._condition.wait(left)

    def _run_commands(self) -> None:
        with self._condition:
            commands, self._commands = self._commands, []
        for command in commands:
            try:
                command.action()
            except BaseException as error:
                command.done.set_exception(error)
            else:
                command.done.set_result(None)
