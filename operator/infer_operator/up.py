"""`inferengine up`: the reconciler with local processes for pods, from the first line on the terminal to the drain.

In: a deployment file, edits of it, signals, processes that end. Out: a running deployment, lines that tell of it, an exit code.
One loop turns twice a second and compares what is with what should be; nothing in it depends on having seen an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infer_operator import reconcile, spec, table
from infer_operator.backends import model_here, probe
from infer_operator.backends.local import HOST, NAMESPACE, POD, LocalBackend, is_free
from infer_operator.backends.process import Process
from infer_operator.backends.state_dir import StateDir, StateDirError
from infer_operator.endpoints import PortsExhaustedError
from infer_operator.state import Key, RemoveTenants, SaveTenants, WriteDocument
from infer_operator.status import Health
from infer_server.contract.state_home import state_home
from infer_server.contract.store import DocumentStore, StoreUnavailableError

TICK_SECONDS = 0.5
RESYNC_SECONDS = 10.0
PROGRESS_SECONDS = 10.0
STORE_START_SECONDS = 30.0
STORE_STOP_SECONDS = 10.0
PORT_WAIT_SECONDS = 10.0
DEFAULT_HTTP_PORT = 9400
PROCESS_ENDED = re.compile(r" ERROR serve: (?:engine|gateway): ended \((.*?)\)")
"""how the pod's supervisor logs that it will start a process again"""
PROCESS_ERROR = re.compile(r" ERROR (?:engine|gateway): (.*)")
HOPELESS_CODES = ("exit code 2", "exit code 3")
"""the configuration is refused; the model cannot be served"""
FUTILE_ENDS = 3
PORT_IN_USE = "can't listen on"
"""how a pod says that another program has a tenant's port"""


class StartError(Exception):
    """It cannot start; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Options:
    file: Path
    deployment: spec.InferenceDeployment
    state: StateDir
    http_port: int | None
    """None: 9400, or the next free one"""


def choose_http_port(wanted: int | None) -> int:
    """Raises StartError."""
    if wanted is not None:
        if not is_free(wanted):
            raise StartError(f"--http-port: port {wanted} is in use; give another, or none to have one chosen")
        return wanted
    for port in range(DEFAULT_HTTP_PORT, DEFAULT_HTTP_PORT + 100):
        if is_free(port):
            return port
    raise StartError(
        f"no free port for HTTP in {DEFAULT_HTTP_PORT}-{DEFAULT_HTTP_PORT + 99}: give one with --http-port"
    )


class Up:
    """One run of `up`. Owned by one event loop; the state directory's lock is held by the caller."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._state = options.state
        self._key = Key(NAMESPACE, options.deployment.metadata.name)
        self._http_port = choose_http_port(options.http_port)
        store_dir = self._state.path / "store"
        store_url = f"unix://{store_dir}/store.sock"
        self._documents = DocumentStore(store_url, self._key.namespace, self._key.name)
        self._backend = LocalBackend(
            self._state,
            self._documents,
            store_url=store_url,
            http_port=self._http_port,
            health=self._health,
            home=state_home(),
        )

        def server(role: str) -> list[str]:
            return [sys.executable, "-m", "infer_server", role, "--config", str(self._state.path / POD)]

        logs = self._state.path / "logs"
        self._store = Process("store", server("store"), logs / "store.log", signal.SIGTERM)
        # A pod that nobody supervises any more must free its ports at once, drained or not.
        self._pod = Process("pod", server("serve"), logs / "pod.log", signal.SIGKILL)
        self._pod_config = b""
        """what the running pod was started with"""
        self._was_ready = False
        self._told_hopeless = False
        """whether it was said that the pod that runs now does not become ready"""
        self._trouble = ""
        self._file_seen = _content_mark(options.file)
        self._next_resync = 0.0
        self._started = time.monotonic()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> int:
        """0 after a drain that was asked for. Raises StartError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._start()
            while not await self._pause():
                await self._turn()
        finally:
            await self._drain()
        return 0

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def _pause(self) -> bool:
        """Wait for the next turn; True if there is to be none."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), TICK_SECONDS)
        return self._stopping.is_set()

    # --- start -------------------------------------------------------------------------------------------------------
    async def _start(self) -> None:
        for process in (self._store, self._pod):
            with contextlib.suppress(FileNotFoundError):
                process.log.replace(process.log.with_suffix(".log.1"))
        self._say(f"{self._key.name}: state in {self._state.path}")
        self._backend.put(self._options.deployment)
        await self._wait_for_own_ports()
        await reconcile.reconcile(
            self._key, self._backend
        )  # all but the document: the store reads its place from the pod's file
        await self._start_store()
        if self._stopping.is_set():
            return
        outcome = await reconcile.reconcile(self._key, self._backend)
        if outcome.retry:
            raise StartError(
                "the quota store does not take the deployment's tenants; see its log in the state directory"
            )
        await self._start_pod()
        await self._wait_until_ready()

    async def _wait_for_own_ports(self) -> None:
        """Tenants keep their ports for ever, so each must be free now; a pod of a killed `up` may still be ending."""
        records, told = self._backend.records(), False
        for tenant in self._options.deployment.spec.tenants:
            record = records.get(tenant.name)
            while record is not None and not self._backend.ports.reclaim(record.port) and not await self._pause():
                if not told:
                    told = True
                    self._say(f"waiting for port {record.port} of tenant {record.name}: another program has it")
                if time.monotonic() - self._started > PORT_WAIT_SECONDS:
                    raise StartError(
                        f"tenant {record.name}: its port {record.port} is in use by another program; stop that program, or "
                        f"remove {self._state.path}/tenants/{record.name}.json to give the tenant another port and new keys"
                    )

    async def _start_store(self) -> None:
        await self._store.start()
        deadline = time.monotonic() + STORE_START_SECONDS
        while not self._stopping.is_set():
            try:
                await self._documents.ping()
                return
            except StoreUnavailableError:
                if not self._store.running or time.monotonic() > deadline:
                    raise StartError(self._failure(self._store, "the quota store did not start")) from None
            await asyncio.sleep(0.05)

    async def _start_pod(self) -> None:
        self._told_hopeless = False
        self._pod_config = self._state.read(POD) or b""
        await self._pod.start()

    async def _wait_until_ready(self) -> None:
        model = self._options.deployment.spec.model
        self._say(f"loading {model.uri} (log: {self._pod.log})")
        told, blocked_since = 0.0, None
        while not await self._pause():
            seconds = time.monotonic() - self._started
            if not self._pod.running or self._gives_up():
                raise StartError(self._failure(self._pod, "the pod did not start"))
            answer = await probe.readiness(HOST, self._http_port)
            if answer is not None and answer.ready:
                self._was_ready = True
                outcome = await reconcile.reconcile(self._key, self._backend)
                if outcome.status is None:  # it was given another document just now
                    continue
                self._say(
                    f"ready after {seconds:.1f} s\n\n{table.tenants(outcome.status)}\n\n{table.places(outcome.status)}\n"
                    f"talk to it: inferengine chat --tenant {outcome.status.tenants[0].name}{self._elsewhere()}"
                )
                return
            blocked = answer is not None and any(PORT_IN_USE in reason for reason in answer.reasons)
            blocked_since = blocked_since or seconds if blocked else None
            if answer is not None and blocked_since is not None and seconds - blocked_since >= PORT_WAIT_SECONDS:
                raise StartError(f"the pod did not start: {'; '.join(answer.reasons)}")
            if seconds - told >= PROGRESS_SECONDS:
                told = seconds
                why = "; ".join(answer.reasons[:3]) if answer else "the pod does not answer yet"
                self._say(f"still waiting after {seconds:.0f} s: {why}")

    def _elsewhere(self) -> str:
        """What other commands have to be told to find this deployment, and this one alone."""
        home = state_home()
        if self._state.path.parent != home:
            return f" --state-dir {self._state.path}"
        alone = len(list(home.glob("*/resource.json"))) == 1
        return "" if alone else f" --deployment {self._state.path.name}"

    def _gives_up(self) -> bool:
        """A pod starts its own processes again and again; whether that is in vain. Told by what it has logged."""
        ends = [match[1] for line in self._pod.last_words(200) if (match := PROCESS_ENDED.search(line))]
        return len(ends) >= FUTILE_ENDS or any(code in HOPELESS_CODES for code in ends)

    def _failure(self, process: Process, what: str) -> str:
        code = "" if process.exit_code is None else f" (exit code {process.exit_code})"
        words = "".join(f"\n  {line}" for line in process.last_words())
        return f"{what}{code}; the end of {process.log}:{words or ' it is empty'}"

    # --- one turn ----------------------------------------------------------------------------------------------------
    async def _turn(self) -> None:
        edited = self._read_edit()
        restarted = await self._revive(self._store)
        restarted |= await self._revive(self._pod)
        await self._tell_readiness()
        if edited or restarted or time.monotonic() >= self._next_resync:
            await self._reconcile()

    def _read_edit(self) -> bool:
        """Whether the file changed. A wrong edit is told and changes nothing."""
        mark = _content_mark(self._options.file)
        if mark == self._file_seen:
            return False
        self._file_seen = mark
        try:
            deployment = model_here.load(self._options.file)
            if deployment.metadata.name != self._key.name:
                name = deployment.metadata.name
                raise spec.SpecError([f'metadata.name: got "{name}"; must stay "{self._key.name}" while it runs'])
        except spec.SpecError as error:
            self._backend.rejected = error.errors
            self._say(f"{self._options.file} is not applied, the last good state stays:")
            for line in error.errors:
                self._say(f"  {line}")
        else:
            before = self._state.resource()
            self._backend.put(deployment)
            if self._state.resource() == before:
                self._say(f"{self._options.file} is as applied: nothing to change")
        return True

    async def _reconcile(self) -> None:
        known = self._backend.records().keys()
        try:
            outcome = await reconcile.reconcile(self._key, self._backend)
        except (OSError, StateDirError, PortsExhaustedError) as error:
            if str(error) != self._trouble:  # said once, not at each try
                self._trouble = str(error)
                self._say(f"cannot bring the deployment up to date, trying again: {error}")
            self._next_resync = time.monotonic() + RESYNC_SECONDS
            return
        self._trouble = ""
        again = TICK_SECONDS if outcome.retry else min(outcome.look_again or RESYNC_SECONDS, RESYNC_SECONDS)
        self._next_resync = time.monotonic() + again
        written = [change for change in outcome.changes if isinstance(change, WriteDocument)]
        for change in outcome.changes:
            if isinstance(change, SaveTenants):
                for record in change.records:
                    access = self._backend.access(self._key, record)
                    what = "has other keys" if record.name in known else "added"
                    self._say(f"tenant {record.name} {what}: {access.endpoint}, {access.credentials}")
            elif isinstance(change, RemoveTenants):
                for record in change.records:
                    self._say(f"tenant {record.name} removed")
        if written:
            self._say(f"generation {written[-1].document.version.generation} applied")
        if self._pod.running and self._state.read(POD) != self._pod_config:
            self._say("model or engine settings changed: restarting the pod")
            await self._pod.stop(self._stop_seconds(), self._hurry)
            self._was_ready = False
            self._pod.failures = 0
            if not self._stopping.is_set():
                await self._start_pod()
            self._next_resync = 0.0  # what was reported is no longer true

    async def _revive(self, process: Process) -> bool:
        """Restart a process that ended by itself, when its back-off is over."""
        if process.exit_code is not None:
            failure = self._failure(process, f"the {process.name} ended")
            self._say(f"{failure}\n  starting it again in {process.ended():.1f} s")
        if not process.restart_due:
            return False
        await (self._start_pod() if process is self._pod else process.start())
        return True

    async def _tell_readiness(self) -> None:
        answer = await probe.readiness(HOST, self._http_port) if self._pod.running else None
        ready = answer is not None and answer.ready
        if ready != self._was_ready:
            self._was_ready = ready
            self._next_resync = 0.0
            self._say(
                "ready"
                if ready
                else f"not ready: {'; '.join(answer.reasons[:3]) if answer else 'no answer from the pod'}"
            )
        if not ready and self._pod.running and not self._told_hopeless and self._gives_up():
            self._told_hopeless = True
            self._next_resync = 0.0
            self._say(self._failure(self._pod, "the pod tries in vain to become ready"))

    async def _health(self) -> Health:
        answer = await probe.readiness(HOST, self._http_port) if self._pod.running else None
        pids = {"store": self._store.pid, "pod": self._pod.pid}
        ready = answer is not None and answer.ready
        return Health(
            available=ready,
            reason="PodReady" if ready else ("PodNotReady" if self._pod.running else "PodNotRunning"),
            message="; ".join([*(answer.reasons if answer else ["the pod does not answer"]), *self._last_error(ready)]),
            processes={name: pid for name, pid in pids.items() if pid is not None},
            metrics_url=f"http://{HOST}:{self._http_port}/metrics",
        )

    def _last_error(self, ready: bool) -> list[str]:
        """What the engine or the gateway has said last of why it ended, where that keeps the pod from being ready."""
        if ready or not self._pod.running or not self._gives_up():
            return []
        return [match[1] for line in self._pod.last_words(200) if (match := PROCESS_ERROR.search(line))][-1:]

    # --- end ---------------------------------------------------------------------------------------------------------
    async def _drain(self) -> None:
        if self._pod.running and self._stopping.is_set():
            how = "draining: running requests may finish, new ones are refused" if self._was_ready else "stopping"
            self._say(f"{how}; once more to stop at once")
        if not await self._pod.stop(self._stop_seconds(), self._hurry):
            self._say("the pod did not end by itself and was killed")
        with contextlib.suppress(OSError, StateDirError, PortsExhaustedError):
            await reconcile.reconcile(self._key, self._backend)
        self._backend.ports.close()
        await self._documents.close()
        await self._store.stop(STORE_STOP_SECONDS, self._hurry)
        if self._stopping.is_set():
            self._say("stopped")

    def _stop_seconds(self) -> float:
        """How long the running pod may take to end: its drain, which is part of what it was started with, and a margin."""
        return float(msgspec.json.decode(self._pod_config)["drainSeconds"] if self._pod_config else 0) + 10


def _content_mark(file: Path) -> bytes:
    """Changes with the content; also where the file is gone. An editor may replace the file and keep its time."""
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError as error:
        return str(error.errno).encode()
