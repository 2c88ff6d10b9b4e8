"""The engine process's loop between the gateway's stream and an engine, in this process; the model does what the test says."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

from infer_engine import EngineConfig, ForwardBatch, InferenceEngine, ModelInfo
from infer_engine.memory.kv_pool import KVPool
from infer_server import engine_host, ipc
from infer_server.engine_host import EngineHost, Outbox

READY = ipc.EngineReady("one", "/", "", "", 64, 16, 256, 8)


class OneTokenModel:
    """Says token 1, whenever `may_run` lets it."""

    def __init__(self) -> None:
        cpu = torch.device("cpu")
        self.info = ModelInfo("one", 1, 1, 2, 8, 64, frozenset(), torch.float32, cpu)
        self.may_run = threading.Event()
        self.is_running = threading.Event()

    def forward(self, batch: ForwardBatch, pool: KVPool) -> torch.Tensor:
        self.is_running.set()
        assert self.may_run.wait(60)
        logits = torch.zeros(batch.num_seqs, self.info.vocab_size)
        logits[:, 1] = 1.0
        return logits


def messages(link: socket.socket) -> Callable[[], ipc.EngineToGateway]:
    """One after the other, as the gateway gets them."""
    deframer = ipc.Deframer()
    received: list[bytes] = []

    def take() -> ipc.EngineToGateway:
        while not received:
            received.extend(deframer.feed(link.recv(1 << 16)))
        return msgspec.msgpack.decode(received.pop(0), type=ipc.EngineToGateway)

    return take


def add_request(id: int, num_tokens: int = 3) -> bytes:
    token_ids = np.arange(num_tokens, dtype="<i4").tobytes()
    return ipc.frame(ipc.AddRequest(id, "acme", "n", token_ids, {"max_tokens": 4, "temperature": 0.0}))


def test_a_closed_stream_in_the_middle_of_a_step_is_an_orderly_end(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    snapshots = threading.Semaphore(0)
    monkeypatch.setattr(engine_host, "SNAPSHOT_SECONDS", 0.001)
    monkeypatch.setattr(os, "_exit", exits.append)
    take_snapshot = EngineHost._snapshot
    monkeypatch.setattr(EngineHost, "_snapshot", lambda host: (snapshots.release(), take_snapshot(host))[1])
    ours, theirs = socket.socketpair()
    model, outbox = OneTokenModel(), Outbox(theirs)
    codes: list[int] = []

    def run() -> None:
        with InferenceEngine(model, EngineConfig(max_cache_tokens=256), on_step_end=outbox.flush) as engine:
            codes.append(EngineHost(engine, theirs, outbox).run(READY))

    with theirs:
        host = threading.Thread(target=run)
        host.start()
        with ours:
            ours.sendall(add_request(1))
            assert model.is_running.wait(60)
            assert snapshots.acquire(timeout=60)
        host.join(0.1)  # the step goes on, and with it the end
        assert host.is_alive()
        model.may_run.set()
        host.join(60)
    assert (codes, exits) == ([0], [])


def test_requests_answers_and_refusals() -> None:
    ours, theirs = socket.socketpair()
    model, outbox = OneTokenModel(), Outbox(theirs)
    model.may_run.set()
    with (
        ours,
        theirs,
        InferenceEngine(model, EngineConfig(max_cache_tokens=256), on_step_end=outbox.flush) as engine,
    ):
        host = threading.Thread(target=EngineHost(engine, theirs, outbox).run, args=(READY,))
        host.start()
        take = messages(ours)
        assert take() == READY
        ours.sendall(add_request(1) + add_request(2, num_tokens=0))
        seen: dict[int, list[ipc.EngineToGateway]] = {1: [], 2: []}
        while sum(isinstance(message, ipc.Finished) for messages in seen.values() for message in messages) < 2:
            message = take()
            if isinstance(message, ipc.Tokens | ipc.Finished):
                seen[message.id].append(message)
        ours.shutdown(socket.SHUT_RDWR)
        host.join(60)
    *tokens, finished = seen[1]
    assert [token for message in tokens for token in message.token_ids] == [1, 1, 1, 1]  # type: ignore[union-attr]
    assert isinstance(finished, ipc.Finished)
    assert (finished.finish_reason, finished.prompt_tokens, finished.output_tokens) == ("length", 3, 4)
    [refused] = seen[2]
    assert isinstance(refused, ipc.Finished)
    assert (refused.finish_reason, refused.error_code) == ("error", "invalid_request")
