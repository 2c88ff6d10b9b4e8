"""Which models the KV pool can serve, found by looking at one real forward pass rather than at names.

In: a model's configuration and the attention calls of a trial pass. Out: the sizes that the pool needs, or a ModelLoadError
that says why not. A model that is accepted here is still compared with its own logits (self_check.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Never

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from infer_engine.errors import ModelLoadError

# Arguments of an attention call that our attention may ignore: they say how to compute, or repeat what it knows
HARMLESS_ARGUMENTS = frozenset(
    {
        "dropout",
        "is_causal",
        "position_ids",
        "position_embeddings",
        "cache_position",
        "past_key_values",
        "use_cache",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "logits_to_keep",
    }
)

# Rotary embeddings that recompute all frequencies once the longest sequence of a batch passes the original length
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What a layer hands to attention: query [num_heads, num_tokens, head_dim], key and value [num_kv_heads, ...]."""

    layer_idx: int | None
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    sliding_window: int | None
    softcap: float | None
    others: Mapping[str, Any]


class Architecture:
    """Records the attention calls of one forward pass and judges them afterwards."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config.get_text_config()
        self._calls: list[AttentionCall] = []
        self._windows: set[int | None] = set()
        self._has_odd_mask = False

    def attend(self, call: AttentionCall) -> torch.Tensor:
        self._calls.append(call)
        return torch.zeros_like(call.query).transpose(0, 1)[..., : call.value.shape[-1]]

    def saw_mask(self, local_size: int | None, is_plain: bool) -> None:
        self._windows.add(local_size)
        self._has_odd_mask |= not is_plain

    @property
    def num_layers(self) -> int:
        return len(self._calls)

    @property
    def num_kv_heads(self) -> int:
        return int(self._calls[0].key.shape[0])

    @property
    def head_dim(self) -> int:
        return int(self._calls[0].key.shape[-1])

    def require_pool(self) -> None:
        """Raise ModelLoadError unless every layer's K and V fit one pool and our attention computes what the model means."""
        self._require_all_layers()
        self._require_equal_shapes()
        self._require_known_arguments()
        asked = {call.sliding_window for call in self._calls}
        missing = [window for window in self._windows - asked if window is not None]
        if missing:
            self._refuse(f"it limits attention to {sorted(missing)} tokens by a mask only (chunked attention)")
        if self._has_odd_mask:
            self._refuse("its attention mask is not plainly causal")

    def _require_all_layers(self) -> None:
        if not self._calls:
            self._refuse("its attention does not go through transformers' AttentionInterface")
        num_layers = self._config.num_hidden_layers
        layers = [call.layer_idx for call in self._calls]
        if layers != list(range(num_layers)):
            self._refuse(
                f"attention ran in layers {layers} of {num_layers}; hybrid and state-space models, "
                "and layers that share K/V, are not served"
            )

    def _require_equal_shapes(self) -> None:
        first = self._calls[0]
        for call in self._calls:
            if call.key.shape != first.key.shape:
                self._refuse(
                    f"layer {call.layer_idx} has K of shape {tuple(call.key.shape)} and layer 0 "
                    f"{tuple(first.key.shape)}; all layers must have the same KV heads and head size"
                )
            if call.value.shape != call.key.shape or call.query.shape[-1] != call.key.shape[-1]:
                self._refuse(
                    f"K has shape {tuple(call.key.shape)} and V {tuple(call.value.shape)}; they must be the same"
                )

    def _require_known_arguments(self) -> None:
        for call in self._calls:
            unknown = sorted(
                name
                for name, value in call.others.items()
                if value is not None and value is not False and name not in HARMLESS_ARGUMENTS
            )
            if unknown:
                self._refuse(f"its attention has arguments that are not supported: {', '.join(unknown)}")

    def _refuse(self, reason: str) -> Never:
        refuse(self._config.model_type, reason)


def refuse(model_type: str, reason: str) -> Never:
    raise ModelLoadError(f"model type {model_type!r} is not supported: {reason}", code="unsupported_model")


def require_supported(model: PreTrainedModel) -> None:
    """Raise ModelLoadError for a kind of model that can't be tried at all."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        refuse(config.model_type, "it is an encoder-decoder; only decoder-only language models are served")
    if not model.can_generate():
        refuse(config.model_type, f"{type(model).__name__} has no language-model head")
    if getattr(model, "_is_stateful", False):
        refuse(config.model_type, "it keeps a recurrent state (state-space or hybrid), which the KV pool can't hold")


def max_positions(config: PreTrainedConfig) -> int:
    """Longest sequence of the model, or as far as its rotary embedding is the same for all sequences of a batch."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        refuse(config.model_type, "its configuration has no max_position_embeddings")
    for rope in _rope_parameters(config):
        if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            limit = min(limit, int(rope.get("original_max_position_embeddings") or limit))
    return limit


def _rope_parameters(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """One set, or one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return []
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [parameters, *nested]
