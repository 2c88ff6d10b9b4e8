"""Compares a model's logits through the KV pool with the model's own, once, at load.

In: a TransformersModel. Out: nothing, or a ModelLoadError. Some architectures run through the pool without an error and are
wrong (biases added to the scores, for one), so none is trusted unseen. The comparison is made in the loaded dtype, with two
sequences in prefill chunks and decodes mixed: what the engine will do.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from infer_engine.errors import ModelLoadError
from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.protocol import ForwardBatch
from infer_engine.model.transformers import ATTENTION_NAME, TransformersModel

logger = logging.getLogger(__name__)

NUM_TOKENS = 64
FLOAT32_TOLERANCE = 1e-4
# In shorter dtypes two right ways to compute differ: allow so much more than the library's own two differ from each other,
# and never less than these many steps of the dtype, for models whose two ways happen to agree
ALLOWED_RATIO = 3.0
FLOOR_EPS = 2.0


def check(model: TransformersModel) -> None:
    """Raise ModelLoadError (code `unsupported_model`) where the logits differ by more than rounding."""
    sequences = _random_sequences(model)
    ours = _through_pool(model, sequences)
    try:
        eager = _own(model, sequences, "eager")
        tolerance = _tolerance(model, sequences, eager)
    finally:
        model.set_attention(ATTENTION_NAME)
    difference = _difference(ours, eager)
    logger.info("%s: logits differ by %.2g from the model's own, allowed %.2g", model.info.name, difference, tolerance)
    if not difference <= tolerance:  # so that NaN is refused as well
        raise ModelLoadError(
            f"{model.info.name}: logits computed through the KV pool differ from the model's own by {difference:.2g}, "
            f"allowed are {tolerance:.2g}; this architecture ({type(model.model).__name__}) is not supported",
            code="unsupported_model",
        )


def _random_sequences(model: TransformersModel) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    limit = min(NUM_TOKENS, model.info.max_model_len)
    return [random.integers(0, model.info.vocab_size, length, dtype=np.int64) for length in (limit, max(3, limit // 3))]


def _through_pool(model: TransformersModel, sequences: list[np.ndarray]) -> list[torch.Tensor]:
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
        for parts, part in zip(logits, rows.split([end - start for start, end in spans]), strict=True):
            parts.append(part)
    return [torch.cat(parts) for parts in logits]


def _batch(sequences: list[np.ndarray], slots: list[np.ndarray], spans: list[tuple[int, int]]) -> ForwardBatch:
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
def _own(model: TransformersModel, sequences: list[np.ndarray], attention: str) -> list[torch.Tensor]:
    model.set_attention(attention)
    return [
        model.model(input_ids=torch.tensor(tokens, device=model.info.device)[None], use_cache=False).logits[0].float()
        for tokens in sequences
    ]


def _tolerance(model: TransformersModel, sequences: list[np.ndarray], eager: list[torch.Tensor]) -> float:
    scale = max(1.0, *(float(logits.abs().max()) for logits in eager))
    if model.info.dtype == torch.float32:
        return FLOAT32_TOLERANCE * scale
    floor = FLOOR_EPS * torch.finfo(model.info.dtype).eps * scale
    try:
        sdpa = _own(model, sequences, "sdpa")
    except ModelLoadError:  # the architecture has only its eager form
        return floor
    return max(floor, ALLOWED_RATIO * _difference(sdpa, eager))


def _difference(ours: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, reference, strict=True))
