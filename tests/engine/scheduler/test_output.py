"""Stop conditions of one request, with a byte-level tokenizer whose tokens are letters."""

from __future__ import annotations

import pytest
import tokenizers

from infer_engine.model.tokenizer import TextStream, Tokenizer
from infer_engine.request import FinishReason, SamplingParams
from infer_engine.scheduler.output import Output

EOS = 26


@pytest.fixture
def letters() -> Tokenizer:
    vocab = {chr(ord("a") + index): index for index in range(26)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    return Tokenizer(backend, eos_token_ids=frozenset({EOS}))


def say(
    tokenizer: Tokenizer, text: str, *, eos: bool = False, **fields: object
) -> tuple[str, int, FinishReason | None]:
    """(text, number of tokens, finish reason) of an output whose sampled tokens spell `text`."""
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    output = Output(params, frozenset({EOS}), params.max_tokens or 100, TextStream(tokenizer, params.stop))
    said, num_tokens = "", 0
    for token_id in [*tokenizer.encode(text), *([EOS] if eos else [])]:
        event, reason = output.push(token_id, None)
        num_tokens += len(event.token_ids)
        said += event.text or ""
        if reason is not None:
            return said, num_tokens, reason
    held = output.flush()
    return said + ((held.text or "") if held is not None else ""), num_tokens, None


def test_text_ends_before_a_stop_string_and_tokens_include_it(letters: Tokenizer) -> None:
    assert say(letters, "onetwothree", stop=("two",)) == ("one", 6, "stop")


def test_the_beginning_of_a_stop_string_comes_out_at_the_end(letters: Tokenizer) -> None:
    assert say(letters, "onetw", stop=("two",), max_tokens=5) == ("onetw", 5, "length")
    assert say(letters, "onetw", stop=("two",), eos=True) == ("onetw", 6, "stop")
    assert say(letters, "onetw", stop=("two",)) == ("onetw", 5, None)


def test_eos_is_a_token_and_no_text(letters: Tokenizer) -> None:
    assert say(letters, "one", eos=True) == ("one", 4, "stop")
    assert say(letters, "one", eos=True, ignore_eos=True) == ("one", 4, None)
    assert say(letters, "one", stop_token_ids=(4,)) == ("on", 3, "stop")


def test_a_stop_on_the_last_allowed_token_is_a_stop(letters: Tokenizer) -> None:
    assert say(letters, "two", stop=("two",), max_tokens=3) == ("", 3, "stop")
    assert say(letters, "tw", eos=True, max_tokens=3) == ("tw", 3, "stop")


def test_without_text_only_tokens_are_told() -> None:
    output = Output(SamplingParams(), frozenset({EOS}), 2, None)
    assert output.push(3, None)[0].text is None
    assert output.flush() is None
    assert output.push(3, None)[1] == "length"
