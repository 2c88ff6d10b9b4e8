"""The engine process: one InferenceEngine behind the stream to the gateway.

In flow requests, their cancellations and what tenants may have; out flow EngineReady once, or why not, then Tokens and Finished
together at the end of each step, and a Snapshot each second. It ends when the stream does. The main thread reads, the engine's
thread computes and writes.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from infer_engine.config import EngineConfig, Share
from infer_engine.cpu import limit_spinning, limit_threads
from infer_engine.errors import ConfigError, InferEngineError, ModelLoadError
from infer_engine.model.source import inspect_checkpoint, resolve_model
from infer_engine.request import Event, FinishedEvent, SamplingParams, TokensEvent
from infer_server import ipc
from infer_server.config import PodConfig

if TYPE_CHECKING:
    from infer_engine.engine import InferenceEngine

log = logging.getLogger(__name__)

EXIT_MODEL = 3
"""The model can't be loaded: starting again at once would not help."""
EXIT_BROKEN = 4
"""The engine broke down; a new process starts afresh."""
SNAPSHOT_SECONDS = 1.0
READ_BYTES = 1 << 18


def run(config: PodConfig, link_fd: int) -> int:
    link = socket.socket(fileno=link_fd)
    outbox = Outbox(link)
    try:
        engine = _start_engine(config, on_step_end=outbox.flush)
        ready = _ready(config.model_name, engine)
    except (ConfigError, ModelLoadError) as error:
        log.error("the model can't be served: %s", error)
        outbox.put(ipc.ModelRefused(str(error)))
        outbox.flush()
        return EXIT_MODEL
    try:
        with engine:
            return EngineHost(engine, link, outbox).run(ready)
    finally:
        gc.unfreeze()  # what stays frozen is never freed, and triton's bindings list it all on stderr as leaked


def _start_engine(config: PodConfig, on_step_end: Callable[[], None]) -> InferenceEngine:
    """Raises ConfigError or ModelLoadError."""
    engine_config = EngineConfig.from_mapping(config.engine)
    directory = resolve_model(config.model, config.model_digest)
    inspect_checkpoint(directory)
    # 400,000 objects come and stay: the collector finds nothing among them, neither now (a second) nor in a step later on
    gc.disable()
    limit_spinning()
    # Only now: torch takes seconds to load, and what is wrong above is said at once
    from infer_engine.engine import InferenceEngine

    limit_threads()
    engine = InferenceEngine(directory, engine_config, on_step_end=on_step_end)
    gc.collect()
    gc.freeze()
    gc.enable()
    return engine


def _ready(model_name: str, engine: InferenceEngine) -> ipc.EngineReady:
    loaded = engine.loaded
    if loaded.directory is None or loaded.tokenizer is None:
        raise ModelLoadError(f"model {model_name} has no tokenizer files; a served model needs them")
    return ipc.EngineReady(
        model_name=model_name,
        model_dir=str(loaded.directory),
        revision=loaded.revision,
        kv_layout=engine.kv_layout,
        max_model_len=engine.max_model_len,
        default_max_tokens=engine.config.default_max_tokens,
        max_cache_tokens=engine.config.max_cache_tokens,
        vocab_size=engine.info.vocab_size,
    )


class Outbox:
    """Gathers messages from any thread; `flush` sends what has gathered, in order.

    Sending blocks while the gateway is behind: then the engine waits, instead of filling memory.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._mutex = threading.Lock()  # guards _pending
        self._sending = threading.Lock()  # keeps whole batches in order
        self._pending = bytearray()

    def put(self, message: ipc.EngineToGateway) -> None:
        data = ipc.frame(message)
        with self._mutex:
            self._pending += data

    def flush(self) -> None:
        with self._sending:
            with self._mutex:
                data, self._pending = self._pending, bytearray()
            try:
                self._link.sendall(data)
            except OSError:  # the gateway is gone; the reader sees it, too, and ends the process
                return


class Live:
    """A request in the engine. Its last event may come before `submit` has told its id."""

    __slots__ = ("engine_id",)

    def __init__(self) -> None:
        self.engine_id: int | None = None  # written by the reader


class EngineHost:
    def __init__(self, engine: InferenceEngine, link: socket.socket, outbox: Outbox) -> None:
        self._engine = engine
        self._link = link
        self._outbox = outbox
        self._is_ending = threading.Event()
        self._live: dict[int, Live] = {}
        """By the gateway's id. Added by the reader, removed with the last event, by whichever thread has it."""

    def run(self, ready: ipc.EngineReady) -> int:
        """Until the gateway closes the stream."""
        self._outbox.put(ready)
        self._outbox.flush()
        log.info("model %s is loaded", ready.model_name)
        threading.Thread(target=self._report, name="snapshots", daemon=True).start()
        deframer = ipc.Deframer()
        decoder = msgspec.msgpack.Decoder(ipc.GatewayToEngine)
        try:
            while data := self._link.recv(READ_BYTES):
                for body in deframer.feed(data):
                    self._handle(decoder.decode(body))
        except ConnectionError:
            pass
        finally:
            self._is_ending.set()
        log.info("the gateway closed the stream")
        return 0

    def _handle(self, message: ipc.GatewayToEngine) -> None:
        match message:
            case ipc.AddRequest():
                self._add(message)
            case ipc.CancelRequest():
                live = self._live.get(message.id)
                if live is not None and live.engine_id is not None:
                    self._engine.cancel(live.engine_id)
            case ipc.SetShares():
                self._engine.set_shares({tenant: Share(**fields) for tenant, fields in message.shares.items()})
            case ipc.DropTenant():
                log.info(
                    "tenant %s: %d cached tokens dropped", message.tenant, self._engine.drop_tenant(message.tenant)
                )

    def _add(self, message: ipc.AddRequest) -> None:
        def on_event(event: Event) -> None:  # in the engine's thread, perhaps before `submit` returns
            if isinstance(event, TokensEvent):
                self._outbox.put(_tokens(message.id, event))
            else:
                self._live.pop(message.id, None)
                self._outbox.put(_finished(message.id, event))

        live = self._live[message.id] = Live()
        try:
            live.engine_id = self._engine.submit(
                np.frombuffer(message.token_ids, dtype="<i4"),
                SamplingParams(**message.params),
                namespace=message.namespace,
                tenant=message.tenant,
                deadline=None if message.deadline_ms is None else time.monotonic() + message.deadline_ms / 1000,
                on_event=on_event,
            )
        except InferEngineError as error:
            self._live.pop(message.id)
            self._outbox.put(ipc.Finished(message.id, "error", 0, 0, 0, 0.0, error.code, str(error), error.retry_ms))
            self._outbox.flush()

    def _report(self) -> None:
        while True:
            if self._engine.has_ended and not self._is_ending.is_set():  # in this order: the end is announced first
                log.error("the engine broke down, its process ends")
                os._exit(EXIT_BROKEN)  # the main thread sits in recv, and nothing is left to clean up
            self._outbox.put(self._snapshot())
            self._outbox.flush()
            if self._is_ending.wait(SNAPSHOT_SECONDS):
                return

    def _snapshot(self) -> ipc.Snapshot:
        stats = {name: float(value) for name, value in dataclasses.asdict(self._engine.engine_stats()).items()}
        tenants = [
            ipc.TenantCache(
                tenant,
                usage.lookup_tokens,
                usage.hit_tokens,
                usage.kv_tokens,
                {str(cause): count for cause, count in usage.evicted_by_cause.items()},
                usage.cross_evicted_tokens,
            )
            for tenant, usage in self._engine.cache_usage_by_tenant().items()
        ]
        return ipc.Snapshot(stats, tenants)


def _tokens(id: int, event: TokensEvent) -> ipc.Tokens:
    logprobs = None
    if event.logprobs is not None:
        logprobs = [(entry.token_id, entry.logprob, list(entry.top)) for entry in event.logprobs]
    return ipc.Tokens(id, list(event.token_ids), logprobs)


def _finished(id: int, event: FinishedEvent) -> ipc.Finished:
    code, message, retry_ms = None, None, None
    if event.error is not None:
        message = str(event.error)
        code = "internal"
        if isinstance(event.error, InferEngineError):
            code, retry_ms = event.error.code, event.error.retry_ms
    usage = event.usage
    return ipc.Finished(
        id=id,
        finish_reason=event.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        queue_ms=event.queue_ms,
        error_code=code,
        error_message=message,
        retry_ms=retry_ms,
    )
