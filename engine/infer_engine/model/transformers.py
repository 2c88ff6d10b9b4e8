"""Runs a causal language model of the `transformers` library on the KV pool.

In: a ragged batch, as one sequence of length num_tokens. Out: logits. The library's modules compute all but attention; that
they hand to a function registered here, which keeps K and V in the pool and the packed sequences apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from infer_engine.attention.torch import RaggedAttention
from infer_engine.errors import ModelLoadError
from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.architecture import Architecture, AttentionCall, max_positions, require_supported
from infer_engine.model.protocol import ForwardBatch, ModelInfo
from infer_engine.model.quiet import quiet_transformers
from infer_engine.model.tokenizer import as_token_ids

ATTENTION_NAME = "infer_engine_pool"


class _Attention(Protocol):
    """What takes the attention calls of one forward pass."""

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Return [num_tokens, num_heads, head_dim]."""
        ...

    def saw_mask(self, local_size: int | None, is_plain: bool) -> None: ...


# Set for the length of one forward pass; the library calls the functions below with no argument of ours
_current: ContextVar[_Attention | None] = ContextVar("infer_engine_attention", default=None)


@contextmanager
def _attention(attention: _Attention) -> Iterator[None]:
    token = _current.set(attention)
    try:
        yield
    finally:
        _current.reset(token)


def _require_current() -> _Attention:
    current = _current.get()
    if current is None:
        raise RuntimeError(
            "this model belongs to an inference engine; before using it elsewhere call set_attn_implementation('eager')"
        )
    return current


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The library's attention function: query [1, num_heads, num_tokens, head_dim], key and value likewise."""
    call = AttentionCall(
        layer_idx=getattr(module, "layer_idx", None),
        query=query[0],
        key=key[0],
        value=value[0],
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        others=others,
    )
    return _require_current().attend(call)[None], None


def _mask(*args: Any, local_size: int | None = None, use_vmap: bool = False, **kwargs: Any) -> None:
    """The library's mask function. The attention masks by itself; this one only tells what the model would have masked.

    Without a mask function of the same name the library would build none and take attention to need none.
    """
    _require_current().saw_mask(local_size, is_plain=not use_vmap)


AttentionInterface.register(ATTENTION_NAME, _attend)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)


class TransformersModel:
    """A RaggedModel over `model`, which from now on attends through the pool only.

    Raises ModelLoadError (code `unsupported_model`) for an architecture that can't: it is tried with two tokens here, and
    `self_check.check` compares its logits with its own.
    """

    def __init__(
        self, model: PreTrainedModel, name: str, *, eos_token_ids: frozenset[int] = frozenset(), device: torch.device
    ) -> None:
        require_supported(model)
        self.model = model.train(False)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._device = device
        self.set_attention(ATTENTION_NAME)
        architecture = Architecture(model.config)
        with _attention(architecture):
            self._call(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1]))
        architecture.require_pool()
        text_config = model.config.get_text_config()
        self._info = ModelInfo(
            name=name,
            num_layers=architecture.num_layers,
            num_kv_heads=architecture.num_kv_heads,
            head_dim=architecture.head_dim,
            vocab_size=int(text_config.vocab_size),
            max_model_len=max_positions(text_config),
            eos_token_ids=eos_token_ids or _eos_token_ids(model),
            dtype=model.dtype,
            device=device,
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def set_attention(self, name: str) -> None:
        """ATTENTION_NAME, or one of the library's own ("eager", "sdpa") to compare with."""
        try:
            with quiet_transformers():  # a model that can't is found out by what it does, not by a line on the terminal
                self.model.set_attn_implementation(name)
        except (ValueError, ImportError) as error:
            raise ModelLoadError(
                f"{type(self.model).__name__}: does not take the attention implementation {name!r}: {error}",
                code="unsupported_model",
            ) from error

    def forward(self, batch: ForwardBatch, pool: KVPool) -> torch.Tensor:
        with _attention(_StepAttention(RaggedAttention(batch, pool))):
            return self._call(
                torch.tensor(batch.input_ids), torch.tensor(batch.positions), torch.tensor(batch.logits_rows)
            )

    @torch.inference_mode()
    def _call(self, input_ids: torch.Tensor, positions: torch.Tensor, logits_rows: torch.Tensor) -> torch.Tensor:
        rows = logits_rows.to(self._device)
        keep = {"logits_to_keep": rows} if self._keeps_logits else {}
        output = self.model(
            input_ids=input_ids.to(self._device)[None],
            position_ids=positions.to(self._device)[None],
            use_cache=False,
            return_dict=True,
            **keep,
        )
        logits: torch.Tensor = output.logits[0]
        if not self._keeps_logits:
            logits = logits.index_select(0, rows)
        return logits.float()


class _StepAttention:
    """Hands the calls of one step to the ragged attention."""

    def __init__(self, attention: RaggedAttention) -> None:
        self._attention = attention

    def attend(self, call: AttentionCall) -> torch.Tensor:
        assert call.layer_idx is not None  # Architecture.require_pool has seen to it
        return self._attention.forward(
            call.layer_idx,
            call.query,
            call.key,
            call.value,
            scaling=call.scaling,
            sliding_window=call.sliding_window,
            softcap=call.softcap,
        )

    def saw_mask(self, local_size: int | None, is_plain: bool) -> None:
        pass


def _eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    generation = as_token_ids(getattr(model.generation_config, "eos_token_id", None))
    return generation or as_token_ids(getattr(model.config.get_text_config(), "eos_token_id", None))
