"""Makes a model that thinks in single sequences (CacheAwareModel) one that the engine can call (RaggedModel).

In: a ragged batch. Out: the logits that were asked for. Each sequence is one call of the user's model, with a view of the
pool that shows only that sequence's tokens.
"""

from __future__ import annotations

import torch

from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.protocol import CacheAwareModel, ForwardBatch, ModelInfo


class PoolView:
    """A SequenceCache: the tokens before this call are readable, this call's are appended layer by layer."""

    def __init__(self, pool: KVPool, slots: torch.Tensor, num_new: int) -> None:
        """slots: int64 [num_tokens + num_new], in position order."""
        self._pool = pool
        self._slots = slots
        self._num_tokens = slots.shape[0] - num_new
        self._appended: set[int] = set()

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def append(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        pool = self._pool
        new_slots = self._slots[self._num_tokens :]
        expected = (new_slots.shape[0], pool.num_kv_heads, pool.head_dim)
        if not 0 <= layer_idx < pool.num_layers:
            raise ValueError(f"layer_idx: got {layer_idx}; the model said that it has {pool.num_layers} layers")
        if tuple(keys.shape) != expected or tuple(values.shape) != expected:
            raise ValueError(
                f"keys and values: got shapes {tuple(keys.shape)} and {tuple(values.shape)}; must be {expected}"
            )
        pool.write(layer_idx, new_slots, keys.to(pool.dtype), values.to(pool.dtype))
        self._appended.add(layer_idx)

    def read(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        end = self._slots.shape[0] if layer_idx in self._appended else self._num_tokens
        return self._pool.read(layer_idx, self._slots[:end])

    def require_complete(self) -> None:
        """A layer that stored nothing would leave other tokens' K/V to be read later."""
        missing = sorted(set(range(self._pool.num_layers)) - self._appended)
        if missing:
            raise ValueError(f"the model did not append K and V for layers {missing}")


class SequenceModelRunner:
    """A RaggedModel over `model`. One row of logits per sequence: that of the last row it computes in a step."""

    def __init__(self, model: CacheAwareModel) -> None:
        self._model = model

    @property
    def info(self) -> ModelInfo:
        return self._model.info

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, pool: KVPool) -> torch.Tensor:
        info = self.info
        last_logits: dict[int, torch.Tensor] = {}
        for index in range(batch.num_seqs):
            start, end = int(batch.query_start[index]), int(batch.query_start[index + 1])
            slots = torch.tensor(batch.kv_slots[index], dtype=torch.int64, device=pool.device)
            cache = PoolView(pool, slots, num_new=end - start)
            position = int(batch.positions[start])
            if end - start == 1 and position > 0:
                logits = self._model.decode_with_cache(int(batch.input_ids[start]), position, cache)
            else:
                token_ids = torch.tensor(batch.input_ids[start:end], device=info.device)
                logits = self._model.prefill_with_cache(token_ids, position, cache)
            cache.require_complete()
            if tuple(logits.shape) != (info.vocab_size,):
                raise ValueError(f"logits: got shape {tuple(logits.shape)}; must be ({info.vocab_size},)")
            last_logits[end - 1] = logits
        wanted = [int(row) for row in batch.logits_rows]
        unknown = [row for row in wanted if row not in last_logits]
        if unknown:
            raise ValueError(f"logits_rows: {unknown} are not the last rows of their sequences")
        if not wanted:
            return torch.empty((0, info.vocab_size), dtype=torch.float32, device=info.device)
        return torch.stack([last_logits[row] for row in wanted]).float()
