"""The gateway's view of the engine process: the one that is there now, its model, and who waits for which of its answers.

An engine may die at any time and another come: those who wait learn it by EngineLost, and `model` is None until then.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infer_engine.model.tokenizer import Tokenizer
from infer_server import ipc
from infer_server.contract.document import CacheShare
from infer_server.gateway.links import Stream
from infer_server.gateway.namespaces import ModelIdentity

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the gateway needs to know of the loaded model."""

    ready: ipc.EngineReady
    tokenizer: Tokenizer
    identity: ModelIdentity


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine process ended; the request is over."""


EngineEvent = ipc.Tokens | ipc.Finished | EngineLost


class EngineClient:
    """Used from one event loop. `on_ready` is called each time an engine can take requests."""

    def __init__(
        self,
        pool: Executor,
        on_ready: Callable[[ServedModel], None],
        on_snapshot: Callable[[ipc.Snapshot], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._on_ready = on_ready
        self._on_snapshot = on_snapshot
        self._on_lost = on_lost
        self._stream: Stream | None = None
        self._listeners: dict[int, Callable[[EngineEvent], None]] = {}
        self._ids = itertools.count(1)
        self._loading: asyncio.Task[None] | None = None
        self._shares: dict[str, CacheShare] = {}
        self.model: ServedModel | None = None
        """None while no engine is ready."""
        self.refusal: str | None = None
        """Why the last engine could not load its model; None once one is ready."""

    async def connect(self, sock: socket.socket) -> None:
        """Use the engine at the other end of `sock` from now on; an earlier one is let go."""
        if self._stream is not None:
            self._stream.close()
            self._lost(self._stream)
        stream = Stream(ipc.EngineToGateway, self._received, lambda: self._lost(stream))
        self._stream = stream
        await stream.connect(sock)
        self._send_shares({tenant: share for tenant, share in self._shares.items() if share != CacheShare()})

    def submit(
        self,
        on_event: Callable[[EngineEvent], None],
        *,
        tenant: str,
        namespace: str,
        token_ids: bytes,
        params: dict[str, object],
        deadline_ms: int | None,
    ) -> int:
        """Requires `model`. `on_event` gets the request's events, the last one being Finished or EngineLost."""
        assert self._stream is not None
        id = next(self._ids)
        self._listeners[id] = on_event
        self._stream.send(ipc.AddRequest(id, tenant, namespace, token_ids, params, deadline_ms))
        return id

    def cancel(self, id: int) -> None:
        """The engine answers with Finished, at its next step."""
        if self._stream is not None:
            self._stream.send(ipc.CancelRequest(id))

    def set_shares(self, shares: Mapping[str, CacheShare], removed: Iterable[str]) -> None:
        """By tenant; whoever is not in it any more, or was removed and is another now, leaves nothing in the engine."""
        for tenant in {*removed, *(self._shares.keys() - shares.keys())}:
            self._shares.pop(tenant, None)
            if self._stream is not None:
                self._stream.send(ipc.DropTenant(tenant))
        changed = {name: share for name, share in shares.items() if self._shares.get(name, CacheShare()) != share}
        self._shares = dict(shares)
        self._send_shares(changed)

    def _send_shares(self, shares: Mapping[str, CacheShare]) -> None:
        if self._stream is not None and shares:
            fields = {
                tenant: msgspec.structs.asdict(share) | {"insert": share.insert == "Allow"}
                for tenant, share in shares.items()
            }
            self._stream.send(ipc.SetShares(fields))

    def forget(self, id: int) -> None:
        """No more events for this request."""
        self._listeners.pop(id, None)

    def close(self) -> None:
        stream, self._stream, self.model = self._stream, None, None
        if stream is not None:
            stream.close()

    def _received(self, message: ipc.EngineToGateway) -> None:
        match message:
            case ipc.Tokens():
                if (listener := self._listeners.get(message.id)) is not None:
                    listener(message)
            case ipc.Finished():
                if (listener := self._listeners.pop(message.id, None)) is not None:
                    listener(message)
            case ipc.Snapshot():
                self._on_snapshot(message)
            case ipc.ModelRefused():
                self.refusal = message.message
            case ipc.EngineReady():
                self._loading = asyncio.get_running_loop().create_task(self._load(message, self._stream))

    async def _load(self, ready: ipc.EngineReady, stream: Stream | None) -> None:
        try:
            loop = asyncio.get_running_loop()
            tokenizer = await loop.run_in_executor(self._pool, Tokenizer.from_directory, Path(ready.model_dir))
        except Exception:  # anything may be wrong with a model's files; the gateway itself goes on
            log.exception("the tokenizer of model %s can't be loaded; this server stays not ready", ready.model_name)
            return
        if stream is not self._stream:  # that engine died meanwhile
            return
        identity = ModelIdentity(ready.revision, tokenizer.digest, ready.kv_layout)
        self.model = ServedModel(ready, tokenizer, identity)
        self.refusal = None
        log.info("model %s is ready", ready.model_name)
        self._on_ready(self.model)

    def _lost(self, stream: Stream) -> None:
        if stream is not self._stream:
            return
        self._stream = None
        self.model = None
        listeners, self._listeners = self._listeners, {}
        log.warning("the engine process is gone; %d requests end with it", len(listeners))
        for listener in listeners.values():
            listener(EngineLost())
        self._on_lost()
