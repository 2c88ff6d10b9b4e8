"""The only place that calls the model: from a scheduled batch to logits, and from logits to tokens.

In: a ScheduledBatch. Out: one entry per sequence, a token or why there is none. The model is behind a mutex, as it may be a
caller's object that other threads use, too.
"""

from __future__ import annotations

import threading
from array import array

import torch

from infer_engine.errors import InferEngineError
from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.protocol import RaggedModel
from infer_engine.model.sampler import SampledToken, Sampler, not_finite
from infer_engine.scheduler.batch import ScheduledBatch


class Compute:
    def __init__(self, model: RaggedModel, pool: KVPool, sampler: Sampler) -> None:
        self._model = model
        self._model_mutex = threading.Lock()
        self._pool = pool
        self._sampler = sampler

    def zero(self, slots: array[int]) -> None:
        """Overwrite what nobody may read any more."""
        if slots:
            self._pool.zero(torch.tensor(slots, dtype=torch.int64))

    def forward(self, batch: ScheduledBatch) -> torch.Tensor:
        """Logits [num_sequences, vocab_size] of each sequence's last token in this step."""
        with self._model_mutex, torch.inference_mode():
            logits = self._model.forward(batch.forward, self._pool)
        expected = (len(batch.works), self._model.info.vocab_size)
        if tuple(logits.shape) != expected:  # a row too few or too many would give a request another's token
            raise ValueError(f"logits: got shape {tuple(logits.shape)}; must be {expected}")
        return logits

    def sample(self, batch: ScheduledBatch, logits: torch.Tensor) -> list[SampledToken | None]:
        """One entry per sequence; None where its prompt goes on. Logits of an unfinished chunk only tell that it is sound."""
        rows = [row for row, work in enumerate(batch.works) if work.samples]
        states = [batch.works[row].sequence.sampling for row in rows]
        with torch.inference_mode():
            if len(rows) == len(batch.works):
                return list(self._sampler.sample(logits, states))
            # As the sampler does: the maximum is not finite where a logit is NaN or +inf, or where all are -inf
            is_finite: list[bool] = torch.isfinite(logits.amax(dim=-1)).tolist()
            result: list[SampledToken | None] = [None if finite else not_finite() for finite in is_finite]
            for row, token in zip(rows, self._sampler.sample(logits[rows], states), strict=True):
                result[row] = token
        return result


def model_failure(error: Exception) -> InferEngineError:
    """What a caller is told. The error's own text may show another tenant's data, so it goes to the log only."""
    return InferEngineError(
        f"the model failed while it computed this request's batch ({type(error).__name__}); the engine's log has the details",
        code="model_failed",
    )
