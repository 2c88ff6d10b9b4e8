"""From logits to tokens: penalties, temperature, top-p, top-k, min-p, log-probabilities.

In: one row of logits per request, and that request's SamplingState. Out: one SampledToken per row. A row is decided by its
own logits, state and random numbers alone, so a request's tokens do not depend on its neighbours in the batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from infer_engine.errors import InferEngineError
from infer_engine.request import SamplingParams, TokenLogprob

# A nucleus is nearly always among so many best tokens; only a row where it isn't is sorted in full (27 times the work).
NUM_CANDIDATES = 512

SMALLEST_TEMPERATURE = 1e-30
"""Anything between it and 0 acts as this: still greedy, and not rounded to a division by zero in float32."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """`error` is set where the row's logits were not finite; token_id is then -1 and the request can't go on."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: InferEngineError | None = None


def not_finite() -> SampledToken:
    message = "the model computed logits that are not finite (NaN or infinite) for this request"
    return SampledToken(-1, error=InferEngineError(message, code="non_finite_logits"))


class SamplingState:
    """What one request's sampling remembers: its random numbers and the tokens that penalties count.

    Written by the Sampler only. It outlives a preemption: the next token is the one that would have come anyway.
    """

    __slots__ = ("_output_counts", "_prompt_token_ids", "_random", "params")

    def __init__(
        self, params: SamplingParams, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int] = ()
    ) -> None:
        self.params = params
        seed = secrets.randbits(63) if params.seed is None else params.seed
        generator = np.random.PCG64(seed)
        if params.temperature > 0:
            generator.advance(len(output_token_ids))  # one random number a token
        self._random = np.random.Generator(generator)
        self._prompt_token_ids: frozenset[int] = (
            frozenset(int(token) for token in prompt_token_ids) if params.repetition_penalty != 1.0 else frozenset()
        )
        self._output_counts: dict[int, int] = {}
        for token_id in output_token_ids:
            self.record(token_id)

    @property
    def has_penalties(self) -> bool:
        params = self.params
        return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0

    def record(self, token_id: int) -> None:
        if self.has_penalties:
            self._output_counts[token_id] = self._output_counts.get(token_id, 0) + 1

    def next_uniform(self) -> float:
        """In [0, 1)."""
        return float(self._random.random())

    def penalise(self, row: torch.Tensor) -> torch.Tensor:
        """A copy of `row` [vocab_size] with the penalties applied.

        repetition (prompt and output): divides positive logits, multiplies negative ones (CTRL, arXiv:1909.05858).
        presence, frequency (output only): subtracted once, and once per occurrence (the OpenAI API's definition).
        """
        row = row.clone()
        params = self.params
        vocab_size = row.shape[0]
        if params.repetition_penalty != 1.0:
            seen = [token for token in self._prompt_token_ids | self._output_counts.keys() if token < vocab_size]
            index = torch.tensor(sorted(seen), dtype=torch.int64, device=row.device)
            scores = row[index]
            penalty = params.repetition_penalty
            # A tiny penalty must not make infinities: the softmax of two of them is no distribution
            largest = torch.finfo(row.dtype).max
            row[index] = torch.where(scores > 0, scores / penalty, scores * penalty).clamp(-largest, largest)
        if self._output_counts and (params.presence_penalty or params.frequency_penalty):
            index = torch.tensor(list(self._output_counts), dtype=torch.int64, device=row.device)
            counts = torch.tensor(list(self._output_counts.values()), dtype=row.dtype, device=row.device)
            row[index] -= params.presence_penalty + params.frequency_penalty * counts
        return row


class Sampler:
    """Stateless; everything that belongs to a request is in its SamplingState."""

    def new_state(
        self, params: SamplingParams, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int] = ()
    ) -> SamplingState:
        """`output_token_ids`: what the request generated already, where it is continued from another engine."""
        return SamplingState(params, prompt_token_ids, output_token_ids)

    def sample(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> list[SampledToken]:
        """Choose one token per row of `logits` (float32 [len(states), vocab_size]) and record it in the row's state."""
        assert logits.shape[0] == len(states), "one row of logits per state"
        if not states:
            return []
        best, token_ids = logits.max(dim=-1)
        # max propagates NaN, and is infinite where a logit is +inf or all are -inf; a single -inf is a legal mask
        finite = torch.isfinite(best)
        special = [row for row, state in enumerate(states) if state.params.temperature > 0 or state.has_penalties]
        finite_rows: list[bool] = finite.tolist()
        chosen = {row: self._choose(logits[row], states[row]) for row in special if finite_rows[row]}
        if chosen:
            rows = torch.tensor(list(chosen), device=logits.device)
            token_ids = token_ids.index_copy(0, rows, torch.stack(list(chosen.values())))
        return self._report(logits, states, finite_rows, token_ids.tolist())

    def _choose(self, row: torch.Tensor, state: SamplingState) -> torch.Tensor:
        """The token of one row that isn't plain greedy, as a 0-dim int64 tensor on the row's device."""
        if state.has_penalties:
            row = state.penalise(row)
        params = state.params
        if params.temperature == 0:
            return row.argmax()
        # Subtracting the maximum first keeps a tiny temperature from overflowing to infinity
        scaled = (row - row.max()) / max(params.temperature, SMALLEST_TEMPERATURE)
        uniform = state.next_uniform()
        if params.top_p >= 1.0 and params.top_k == 0 and params.min_p == 0.0:
            return _draw(scaled.softmax(dim=-1), uniform)
        probs, candidates = _restrict(scaled.softmax(dim=-1), params)
        return candidates[_draw(probs, uniform)]

    def _report(
        self,
        logits: torch.Tensor,
        states: Sequence[SamplingState],
        finite_rows: Sequence[bool],
        token_ids: Sequence[int],
    ) -> list[SampledToken]:
        sampled = []
        for row, (state, is_finite, token_id) in enumerate(zip(states, finite_rows, token_ids, strict=True)):
            if not is_finite:
                sampled.append(not_finite())
                continue
            state.record(token_id)
            count = state.params.logprobs
            logprob = None if count is None else _token_logprob(logits[row], token_id, count)
            sampled.append(SampledToken(token_id, logprob))
        return sampled


def _restrict(probs: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and ids of the tokens that pass top-p, top-k and min-p, best first.

    Each filter looks at the whole distribution and a token must pass all three, so their order is no matter. The best
    token always passes.
    """
    sorted_probs, candidates = probs.topk(min(NUM_CANDIDATES, probs.shape[0]))
    is_complete = sorted_probs.shape[0] == probs.shape[0] or _holds_all(sorted_probs, params)
    if not is_complete:
        sorted_probs, candidates = probs.sort(descending=True, stable=True)
    keep = torch.ones_like(sorted_probs, dtype=torch.bool)
    if params.top_p < 1.0:
        before = sorted_probs.cumsum(0, dtype=torch.float64) - sorted_probs
        keep &= before < params.top_p  # the token that reaches top_p is still in
    if params.top_k:
        keep[params.top_k :] = False
    if params.min_p > 0.0:
        keep &= sorted_probs >= params.min_p * sorted_probs[0]
    keep[0] = True
    return sorted_probs.masked_fill(~keep, 0.0), candidates


def _holds_all(sorted_probs: torch.Tensor, params: SamplingParams) -> bool:
    """Whether no token outside these best ones can pass the filters."""
    if 0 < params.top_k <= sorted_probs.shape[0]:
        return True
    if params.top_p < 1.0 and float(sorted_probs.sum(dtype=torch.float64)) >= params.top_p:
        return True
    return params.min_p > 0.0 and float(sorted_probs[-1]) < params.min_p * float(sorted_probs[0])


def _draw(probs: torch.Tensor, uniform: float) -> torch.Tensor:
    """Index drawn from unnormalised `probs` by the inverse of their cumulative sum (float64: small ones count too)."""
    cumulative = probs.cumsum(0, dtype=torch.float64)
    total = cumulative[-1:]
    # Below the total even where the product rounds up to it; right=True then never lands on an entry of probability 0
    target = torch.minimum(total * uniform, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[0]


def _token_logprob(row: torch.Tensor, token_id: int, count: int) -> TokenLogprob:
    logprobs = row.log_softmax(dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if count:
        values, token_ids = logprobs.topk(min(count, row.shape[0]))
        top = tuple(zip(token_ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs[token_id]), top)
