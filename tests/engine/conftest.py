"""A model of a few integer operations that really reads the KV pool, so that a wrong slot gives a wrong token.

Layer 0 stores each token with its position, layer 1 a running hash over the prefix. The next token is computed from both, over
the whole context; `continuation` computes the same from the tokens alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.protocol import ForwardBatch, ModelInfo

VOCAB_SIZE = 97
EOS = 96
POISON = 95
"""A token whose logits are NaN, as long as it is the last of the context."""
MODULUS = 8191


class ArithmeticModel:
    def __init__(self, max_model_len: int = 512) -> None:
        self.info = ModelInfo(
            name="arithmetic",
            num_layers=2,
            num_kv_heads=1,
            head_dim=2,
            vocab_size=VOCAB_SIZE,
            max_model_len=max_model_len,
            eos_token_ids=frozenset({EOS}),
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.batches: list[list[int]] = []
        """Per step, the number of tokens of each sequence."""
        self.fail_next = False
        self.may_run = threading.Event()
        self.may_run.set()
        self.is_running = threading.Event()

    def forward(self, batch: ForwardBatch, pool: KVPool) -> torch.Tensor:
        self.is_running.set()
        assert self.may_run.wait(60)
        self.batches.append(np.diff(batch.query_start).tolist())
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("the device is gone, and this text is nobody's business")
        tokens_pool, hash_pool = pool.keys[0].numpy(), pool.keys[1].numpy()
        logits = torch.zeros((batch.num_seqs, self.info.vocab_size))
        # All writes come first, as a real layer does: two sequences with one slot would spoil each other
        for index, slots in enumerate(batch.kv_slots):
            rows = slice(batch.query_start[index], batch.query_start[index + 1])
            num_new = rows.stop - rows.start
            begin = len(slots) - num_new
            assert batch.positions[rows].tolist() == list(range(begin, len(slots)))
            assert batch.out_slots[rows].tolist() == slots[begin:].tolist()
            tokens_pool[slots[begin:], 0, 0] = batch.input_ids[rows]
            tokens_pool[slots[begin:], 0, 1] = batch.positions[rows]
            state = int(hash_pool[slots[begin - 1], 0, 0]) if begin else 0
            for token_id, position, slot in zip(
                batch.input_ids[rows], batch.positions[rows], slots[begin:], strict=True
            ):
                state = _mix(state, int(token_id), int(position))
                hash_pool[slot, 0, 0] = state
        for index, slots in enumerate(batch.kv_slots):
            context = tokens_pool[slots, 0]
            token_id = _next(context[:, 0].astype(int).tolist(), int(hash_pool[slots[-1], 0, 0]))
            logits[index, token_id] = 1.0
            if context[-1, 0] == POISON:
                logits[index] = float("nan")
        return logits


def _mix(state: int, token_id: int, position: int) -> int:
    return (state * 31 + token_id * 7 + position + 1) % MODULUS


def _next(context: list[int], state: int) -> int:
    """Never EOS by accident in every tenth context, and never POISON."""
    total = state + sum((index + 1) * token_id for index, token_id in enumerate(context))
    return EOS if total % 40 == 0 else total % POISON


def _continuation(prompt: list[int], max_tokens: int, ignore_eos: bool = False) -> list[int]:
    tokens = list(prompt)
    state = 0
    for position, token_id in enumerate(prompt):
        state = _mix(state, token_id, position)
    while len(tokens) < len(prompt) + max_tokens:
        token_id = _next(tokens, state)
        tokens.append(token_id)
        state = _mix(state, token_id, len(tokens) - 1)
        if token_id == EOS and not ignore_eos:
            break
    return tokens[len(prompt) :]


@pytest.fixture
def arithmetic() -> type[ArithmeticModel]:
    return ArithmeticModel


@pytest.fixture
def continuation() -> Callable[..., list[int]]:
    """What ArithmeticModel says after a prompt: continuation(prompt, max_tokens, ignore_eos=False)."""
    return _continuation


@pytest.fixture
def poison() -> int:
    return POISON


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Poll a condition; fails after a minute."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true within a minute"
            time.sleep(0.001)

    return wait


@pytest.fixture(autouse=True)
def single_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
