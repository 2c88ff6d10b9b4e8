"""The gate: a request is checked in full here, in its caller's thread, and becomes a Sequence.

In: token ids and parameters from outside. Out: a Sequence that the scheduler need not doubt, or InvalidRequestError saying what
was given and what is allowed. Reads only what never changes, so any thread may use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infer_engine.errors import InvalidRequestError
from infer_engine.model.protocol import ModelInfo
from infer_engine.model.sampler import Sampler
from infer_engine.model.tokenizer import TextStream, Tokenizer
from infer_engine.request import Event, SamplingParams
from infer_engine.scheduler.output import Output
from infer_engine.scheduler.sequence import Sequence

TokenIds = AnySequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Intake:
    """max_model_len: prompt and output together. num_slots: the KV pool's size, which bounds a prompt."""

    info: ModelInfo
    tokenizer: Tokenizer | None
    sampler: Sampler
    max_model_len: int
    num_slots: int
    default_max_tokens: int

    def new_sequence(
        self,
        request_id: int,
        token_ids: TokenIds,
        params: SamplingParams,
        *,
        namespace: str,
        tenant: str,
        deadline: float | None,
        with_text: bool,
        submitted_at: float,
        on_event: Callable[[Event], None],
    ) -> Sequence:
        prompt = self._check_prompt(token_ids)
        self._check_options(params, namespace, tenant, deadline, with_text)
        max_tokens = self.default_max_tokens if params.max_tokens is None else params.max_tokens
        max_tokens = min(max_tokens, self.max_model_len - len(prompt))
        known = np.empty(len(prompt) + max_tokens, dtype=np.int32)
        known[: len(prompt)] = prompt
        text = None
        if self.tokenizer is not None and (with_text or params.stop):
            text = TextStream(self.tokenizer, params.stop)
        return Sequence(
            request_id=request_id,
            tenant=tenant,
            namespace=namespace,
            params=params,
            token_ids=known,
            num_prompt_tokens=len(prompt),
            deadline=deadline,
            submitted_at=submitted_at,
            on_event=on_event,
            sampling=self.sampler.new_state(params, prompt.tolist()),
            output=Output(params, self.info.eos_token_ids, max_tokens, text),
            num_tokens=len(prompt),
        )

    def _check_prompt(self, token_ids: TokenIds) -> npt.NDArray[np.int32]:
        prompt = np.asarray(token_ids)
        if prompt.ndim != 1 or (prompt.size and prompt.dtype.kind not in "iu"):
            raise InvalidRequestError(f"prompt: got {_shorten(token_ids)}; must be a list of integer token ids")
        if prompt.size == 0:
            raise InvalidRequestError("prompt: got no tokens; give at least one")
        if prompt.size >= self.max_model_len:
            raise InvalidRequestError(
                f"prompt: got {prompt.size} tokens; at most {self.max_model_len - 1} leave room for one output token "
                f"(max_model_len is {self.max_model_len})"
            )
        if prompt.size > self.num_slots:
            raise InvalidRequestError(
                f"prompt: got {prompt.size} tokens; at most {self.num_slots} fit in the KV pool (max_cache_tokens)"
            )
        low, high = int(prompt.min()), int(prompt.max())
        if low < 0 or high >= self.info.vocab_size:
            raise InvalidRequestError(
                f"prompt: got token id {low if low < 0 else high}; must be from 0 to {self.info.vocab_size - 1}"
            )
        return prompt.astype(np.int32)

    def _check_options(
        self, params: object, namespace: object, tenant: object, deadline: object, with_text: bool
    ) -> None:
        if not isinstance(params, SamplingParams):
            raise InvalidRequestError(f"params: got {type(params).__name__}; must be SamplingParams")
        for name, value in (("namespace", namespace), ("tenant", tenant)):
            if not isinstance(value, str):
                raise InvalidRequestError(f"{name}: got {value!r}; must be a string")
        if deadline is not None and not (isinstance(deadline, (int, float)) and math.isfinite(deadline)):
            raise InvalidRequestError(
                f"deadline: got {deadline!r}; must be finite seconds of time.monotonic(), or None"
            )
        if self.tokenizer is None and (params.stop or with_text):
            name = "stop" if params.stop else "with_text"
            raise InvalidRequestError(f"{name}: this engine's model has no tokenizer; use stop_token_ids and token ids")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
