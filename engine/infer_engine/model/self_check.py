"""Compares a model's logits through the KV pool with the model's own, once, at load.

In: a TransformersModel. Out: nothing, or a ModelLoadError. Some architectures run through the pool without an error and are
wrong (biases added to the scores, for one), so none is trusted unseen. The comparison is made in the loaded dtype, with two
sequences in prefill chunks and decodes mixed: what the engine will do.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from infer_engine.errors import ModelLoadError
from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.protocol import ForwardBatch
from infer_engine.model.transformers import ATTENTION_NAME, TransformersModel

logger = logging.getLogger(__name__)

Tokens = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]

NUM_TOKENS = 64
FLOAT32_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two sets of logits. The mean tells a wrong computation from rounding better than the worst case does."""

    worst: float
    mean: float

    def is_within(self, allowed: Difference) -> bool:
        return self.worst <= allowed.worst and self.mean <= allowed.mean  # False for NaN as well


# In shorter dtypes two right ways to compute differ: allow so much more than the library's own two differ from each other...
ALLOWED_RATIO = Difference(worst=3.0, mean=2.0)
# ...and never less than so many steps of the dtype at the largest logit, for models that have one way only. Measured on
# SmolLM2-135M in bfloat16: 6.7 and 0.7 between the library's two ways; 34 and 2.4 for a slight bias that is left out.
FLOOR_STEPS = Difference(worst=8.0, mean=1.0)


def check(model: TransformersModel) -> None:
    """Raise ModelLoadError (code `unsupported_model`) where the logits differ by more than rounding."""
    sequences = _random_sequences(model)
    ours = _through_pool(model, sequences)
    try:
        eager = _own(model, sequences, "eager")
        difference = _difference(ours, eager)
        allowed = _allowed(model, eager)
        if not difference.is_within(allowed) and model.info.dtype != torch.float32:
            allowed = _allowed_by_library(model, sequences, eager, allowed)
    finally:
        model.set_attention(ATTENTION_NAME)
    logger.info("%s: logits against the model's own: %s, allowed %s", model.info.name, difference, allowed)
    if not difference.is_within(allowed):
        raise ModelLoadError(
            f"{model.info.name}: logits computed through the KV pool differ from the model's own by {difference.worst:.2g} "
            f"(mean {difference.mean:.2g}), allowed are {allowed.worst:.2g} ({allowed.mean:.2g}); this architecture "
            f"({type(model.model).__name__}) is not supported",
            code="unsupported_model",
        )


def _random_sequences(model: TransformersModel) -> list[Tokens]:
    random = np.random.default_rng(0)
    limit = min(NUM_TOKENS, model.info.max_model_len)
    return [random.integers(0, model.info.vocab_size, length, dtype=np.int64) for length in (limit, max(3, limit // 3))]


def _through_pool(model: TransformersModel, sequences: list[Tokens]) -> list[torch.Tensor]:
    """Logits of every position, computed in two chunks and a last decode, on scattered slots."""
    info = model.info
    total = sum(map(len, sequences))
    pool = KVPool(info.num_layers, total, info.num_kv_heads, info.head_dim, info.dtype, info.device)
    free = np.random.default_rng(1).permutation(total).astype(np.int32)
    slots = np.split(free, np.cumsum([len(tokens) for tokens in sequences])[:-1])
    cuts = [(0, len(tokens) * 2 // 5, len(tokens) - 1, len(tokens)) for tokens in sequences]
    logits: list[list[torch.Tensor]] = [[] for _ in sequences]
    for step in range(3):
        spans = [(cut[step], cut[step + 1]) for cut in cuts]
        rows = model.forward(_batch(sequences, slots, spans), pool)
        for parts, part in zip(logits, _split(rows, spans), strict=True):
            parts.append(part)
    return [torch.cat(parts) for parts in logits]


def _split(rows: torch.Tensor, spans: list[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
    return torch.split(rows, [end - start for start, end in spans])


def _batch(sequences: list[Tokens], slots: list[Slots], spans: list[tuple[int, int]]) -> ForwardBatch:
    lengths = [end - start for start, end in spans]
    return ForwardBatch(
        input_ids=np.concatenate([tokens[start:end] for tokens, (start, end) in zip(sequences, spans, strict=True)]),
        positions=np.concatenate([np.arange(start, end, dtype=np.int64) for start, end in spans]),
        out_slots=np.concatenate(
            [own[start:end].astype(np.int64) for own, (start, end) in zip(slots, spans, strict=True)]
        ),
        query_start=np.cumsum([0, *lengths], dtype=np.int32),
        kv_slots=tuple(own[:end] for own, (_, end) in zip(slots, spans, strict=True)),
        logits_rows=np.arange(sum(lengths), dtype=np.int64),
    )


@torch.inference_mode()
def _own(model: TransformersModel, sequences: list[Tokens], attention: str) -> list[torch.Tensor]:
    model.set_attention(attention)
    return [
        model.model(input_ids=torch.tensor(tokens, device=model.info.device)[None], use_cache=False).logits[0].float()
        for tokens in sequences
    ]


def _allowed(model: TransformersModel, eager: list[torch.Tensor]) -> Difference:
    scale = max(1.0, *(float(logits.abs().max()) for logits in eager))
    if model.info.dtype == torch.float32:
        return Difference(FLOAT32_TOLERANCE * scale, FLOAT32_TOLERANCE * scale)
    step = torch.finfo(model.info.dtype).eps * scale
    return Difference(FLOOR_STEPS.worst * step, FLOOR_STEPS.mean * step)


def _allowed_by_library(
    model: TransformersModel, sequences: list[Tokens], eager: list[torch.Tensor], floor: Difference
) -> Difference:
    """For what is beyond the floor: beside how far the library's own two ways are apart, which takes two more passes."""
    try:
        usual = _difference(_own(model, sequences, "sdpa"), eager)
    except ModelLoadError:  # the architecture has only its eager form
        return floor
    return Difference(
        max(floor.worst, ALLOWED_RATIO.worst * usual.worst), max(floor.mean, ALLOWED_RATIO.mean * usual.mean)
    )


def _difference(ours: list[torch.Tensor], reference: list[torch.Tensor]) -> Difference:
    gaps = [(a - b).abs() for a, b in zip(ours, reference, strict=True)]
    return Difference(max(float(gap.max()) for gap in gaps), max(float(gap.mean()) for gap in gaps))
