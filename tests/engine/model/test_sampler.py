"""Each row is decided by its own logits, state and random numbers."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from infer_engine.model.sampler import Sampler
from infer_engine.request import SamplingParams

VOCAB_SIZE = 3000
SAMPLER = Sampler()


def random_logits(rows: int, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def draw(logits: torch.Tensor, count: int, **params: Any) -> Counter[int]:
    """Tokens drawn from one row by `count` requests with different seeds."""
    states = [SAMPLER.new_state(SamplingParams(seed=seed, **params), []) for seed in range(count)]
    return Counter(token.token_id for token in SAMPLER.sample(logits.expand(count, -1), states))


def test_greedy_takes_the_largest() -> None:
    logits = random_logits(5)
    states = [SAMPLER.new_state(SamplingParams(temperature=0), []) for _ in range(5)]
    assert [token.token_id for token in SAMPLER.sample(logits, states)] == logits.argmax(-1).tolist()


def test_empty_batch() -> None:
    assert SAMPLER.sample(torch.empty(0, VOCAB_SIZE), []) == []


def test_temperature_gives_the_softmax_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -30.0]])
    counts = draw(logits, 4000, temperature=2.0)
    expected = (logits[0] / 2).softmax(-1)
    for token_id in range(3):
        assert counts[token_id] / 4000 == pytest.approx(float(expected[token_id]), abs=0.03)
    assert counts[3] == 0


def test_tiny_temperature_is_greedy() -> None:
    assert set(draw(torch.tensor([[0.1, 0.3, 0.2]]), 50, temperature=1e-12)) == {1}


def test_top_k_keeps_the_k_best() -> None:
    logits = random_logits(1)
    assert set(draw(logits, 300, top_k=3, temperature=5.0)) == set(logits[0].topk(3).indices.tolist())


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert set(draw(logits, 300, top_p=0.7)) == {0, 1}
    assert set(draw(logits, 300, top_p=0.01)) == {0}


def test_min_p_is_relative_to_the_best() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert set(draw(logits, 500, min_p=0.2)) == {0, 1, 2}


@pytest.mark.parametrize("params", [{"top_p": 0.999}, {"min_p": 1e-6}, {"top_k": 2000}])
def test_a_flat_distribution_has_more_candidates_than_the_short_list(params: dict[str, Any]) -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    assert len(draw(logits, 3000, **params)) > 2 * 512


def test_filters_must_all_be_passed() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert set(draw(logits, 500, top_p=0.95, top_k=3, min_p=0.6)) == {0, 1}


@given(
    rows=st.integers(1, 6),
    params=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.3, 1.0]),
            "top_k": st.sampled_from([0, 5]),
            "top_p": st.sampled_from([1.0, 0.9]),
            "min_p": st.sampled_from([0.0, 0.05]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
            "presence_penalty": st.sampled_from([0.0, 0.5]),
        }
    ),
    seed=st.integers(0, 1000),
)
def test_alone_and_in_a_batch_give_the_same_tokens(rows: int, params: dict[str, Any], seed: int) -> None:
    steps = [random_logits(rows, seed + step) for step in range(4)]
    mine = SamplingParams(seed=seed, **params)
    alone_state = SAMPLER.new_state(mine, [1, 2, 3])
    alone = [SAMPLER.sample(logits[-1:], [alone_state])[0] for logits in steps]
    states = [SAMPLER.new_state(SamplingParams(seed=other, top_p=0.8), []) for other in range(rows - 1)]
    states.append(SAMPLER.new_state(mine, [1, 2, 3]))
    assert [SAMPLER.sample(logits, states)[-1] for logits in steps] == alone


def test_a_continued_request_draws_what_it_would_have_drawn() -> None:
    steps = [random_logits(1, step) for step in range(6)]
    params = SamplingParams(seed=7, frequency_penalty=0.7, repetition_penalty=1.1)
    state = SAMPLER.new_state(params, [4, 5])
    tokens = [SAMPLER.sample(logits, [state])[0].token_id for logits in steps]
    resumed = SAMPLER.new_state(params, [4, 5], output_token_ids=tokens[:3])
    assert [SAMPLER.sample(logits, [resumed])[0].token_id for logits in steps[3:]] == tokens[3:]


def test_requests_without_a_seed_differ() -> None:
    logits = torch.zeros(20, VOCAB_SIZE)
    states = [SAMPLER.new_state(SamplingParams(), []) for _ in range(20)]
    assert len({token.token_id for token in SAMPLER.sample(logits, states)}) > 10


def test_repetition_penalty_counts_prompt_and_output() -> None:
    logits = torch.tensor([[4.0, 3.9, 3.8, -1.0]])
    state = SAMPLER.new_state(SamplingParams(temperature=0, repetition_penalty=1.5), [0])
    assert [SAMPLER.sample(logits, [state])[0].token_id for _ in range(3)] == [1, 2, 0]


def test_negative_logits_are_made_smaller_by_a_repetition_penalty() -> None:
    state = SAMPLER.new_state(SamplingParams(temperature=0, repetition_penalty=2.0), [0])
    assert SAMPLER.sample(torch.tensor([[-1.0, -1.5]]), [state])[0].token_id == 1


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = torch.tensor([[1.0, 0.8, 0.0]])
    presence = SAMPLER.new_state(SamplingParams(temperature=0, presence_penalty=0.5), [0, 0])
    assert [SAMPLER.sample(logits, [presence])[0].token_id for _ in range(4)] == [0, 1, 0, 0]
    frequency = SAMPLER.new_state(SamplingParams(temperature=0, frequency_penalty=0.5), [0, 0])
    assert [SAMPLER.sample(logits, [frequency])[0].token_id for _ in range(4)] == [0, 1, 0, 1]


def test_a_prompt_token_beyond_the_logits_is_no_matter() -> None:
    state = SAMPLER.new_state(SamplingParams(temperature=0, repetition_penalty=2.0), [99])
    assert SAMPLER.sample(torch.tensor([[1.0, 2.0]]), [state])[0].token_id == 1


def test_logprobs_are_those_before_temperature_and_penalties() -> None:
    logits = random_logits(1)
    params = SamplingParams(temperature=3.0, seed=1, repetition_penalty=1.5, logprobs=3)
    token = SAMPLER.sample(logits, [SAMPLER.new_state(params, [1, 2])])[0]
    expected = logits[0].log_softmax(-1)
    assert token.logprob is not None
    assert token.logprob.token_id == token.token_id
    assert token.logprob.logprob == pytest.approx(float(expected[token.token_id]))
    assert [token_id for token_id, _ in token.logprob.top] == expected.topk(3).indices.tolist()
    assert token.logprob.top[0][1] == pytest.approx(float(expected.max()))


def test_no_alternatives_asked_for() -> None:
    token = SAMPLER.sample(random_logits(1), [SAMPLER.new_state(SamplingParams(logprobs=0), [])])[0]
    assert token.logprob is not None
    assert token.logprob.top == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(bad: float, temperature: float) -> None:
    logits = random_logits(3)
    logits[1, 5] = bad
    states = [SAMPLER.new_state(SamplingParams(temperature=temperature, seed=1), []) for _ in range(3)]
    sampled = SAMPLER.sample(logits, states)
    assert sampled[1].error is not None
    assert sampled[1].error.code == "non_finite_logits"
    assert sampled[0].error is None
    assert sampled[2].error is None


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 100),
            "top_p": st.floats(0, 1, exclude_min=True),
            "top_k": st.integers(0, 2**64 - 1),
            "min_p": st.floats(0, 1),
            "presence_penalty": st.floats(-2, 2),
            "frequency_penalty": st.floats(-2, 2),
            "repetition_penalty": st.floats(0, 10, exclude_min=True),
            "seed": st.integers(0, 2**63 - 1),
        },
    )
)
@example({"temperature": 1e-308})
@example({"temperature": 5e-324, "top_p": 0.5})
@example({"repetition_penalty": 1e-308})
@example({"repetition_penalty": 1e-38, "temperature": 1e-38, "top_p": 0.5})
def test_whatever_is_allowed_gives_a_token_of_the_vocabulary(params: dict[str, Any]) -> None:
    """One that is not would fail the next step of the whole batch, and with it other tenants' requests."""
    state = SAMPLER.new_state(SamplingParams(**params), range(100))
    for _ in range(2):
        (token,) = SAMPLER.sample(random_logits(1, vocab_size=100), [state])
        assert token.error is None
        assert 0 <= token.token_id < 100


def test_masked_tokens_are_legal() -> None:
    logits = torch.full((1, 10), -math.inf)
    logits[0, 4] = 1.0
    assert set(draw(logits, 20)) == {4}
    logits[0, 4] = -math.inf
    state = SAMPLER.new_state(SamplingParams(temperature=0), [])
    assert SAMPLER.sample(logits, [state])[0].error is not None
