"""Pieces of a stream are together the text of all its tokens, cut at the earliest stop string."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from infer_engine.model.tokenizer import TextStream, Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def byte_level() -> Tokenizer:
    """Like GPT-2's: every byte, some pairs, pieces of characters joined, an added word and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left in alphabet[60:80] for right in alphabet[60:70]]
    vocab = {token: index for index, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.add_tokens(["two words é"])
    return Tokenizer(backend)


def byte_fallback() -> Tokenizer:
    """Like Llama 2's: words with a leading mark for a space, and bytes for what is in no word."""
    words = ["▁", "▁hello", "▁wor", "ld", "é", "▁<0x", "世", ".", "▁▁"]
    vocab = [("<unk>", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256)), *((word, -1.0) for word in words)]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend)


TOKENIZERS: dict[str, Tokenizer] = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}

SPLITTER = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def bytes_as_tokens(kind: str, text: str) -> list[int]:
    """One token for each byte of the text."""
    if kind == "byte_level":
        [(names, _)] = SPLITTER.pre_tokenize_str(text)
    else:
        names = [f"<0x{byte:02X}>" for byte in text.encode()]
    return [TOKENIZERS[kind].backend.token_to_id(name) for name in names]


def token_ids(kind: str) -> st.SearchStrategy[list[int]]:
    """Any tokens, among them bytes that make whole characters, cut ones and nonsense, and ids that no token has."""
    any_token = st.integers(0, TOKENIZERS[kind].vocab_size + 3).map(lambda token: [token])
    whole = st.sampled_from([bytes_as_tokens(kind, text) for text in ("é", "世", "🙂", "a", "\n")])
    cut = whole.map(lambda tokens: tokens[:-1])
    return st.lists(st.one_of(any_token, whole, cut), max_size=12).map(
        lambda parts: [t for part in parts for t in part]
    )


def stream(
    tokenizer: Tokenizer, tokens: list[int], cuts: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[str], bool]:
    """The pieces, with the tokens pushed in chunks of the given sizes (then one by one)."""
    text_stream = TextStream(tokenizer, stop)
    pieces: list[str] = []
    rest, stopped = list(tokens), False
    for size in [*cuts, *[1] * len(tokens)]:
        delta = text_stream.push(rest[:size])
        rest = rest[size:]
        pieces.append(delta.text)
        stopped = stopped or delta.stopped
    pieces.append(text_stream.finish())
    return pieces, stopped


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    found = [index for string in stop if (index := text.find(string)) >= 0]
    return text[: min(found)] if found else text


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_pieces_are_the_whole_decoded_text(kind: str, data: st.DataObject) -> None:
    tokens = data.draw(token_ids(kind))
    cuts = data.draw(st.lists(st.integers(0, 4), max_size=6))
    pieces, _ = stream(TOKENIZERS[kind], tokens, cuts)
    assert "".join(pieces) == TOKENIZERS[kind].decode(tokens)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_pieces_end_at_the_earliest_stop_string(kind: str, data: st.DataObject) -> None:
    tokens = data.draw(token_ids(kind))
    text = TOKENIZERS[kind].decode(tokens)
    inside = st.builds(lambda i, n: text[i : i + n], st.integers(0, len(text)), st.integers(1, 4)).filter(bool)
    stop = tuple(data.draw(st.lists(st.one_of(inside, st.sampled_from(["aa", "é\n", "ab", "\n\n"])), max_size=3)))
    pieces, stopped = stream(TOKENIZERS[kind], tokens, data.draw(st.lists(st.integers(0, 4), max_size=6)), stop)
    assert "".join(pieces) == cut_at_stop(text, stop)
    assert not stopped or any(string in text for string in stop)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_incomplete_character_waits(kind: str) -> None:
    ids = bytes_as_tokens(kind, "🙂")
    text_stream = TextStream(TOKENIZERS[kind])
    assert all(text_stream.push([token]).text == "" for token in ids[:3])
    assert text_stream.push(ids[3:]).text + text_stream.finish() == "🙂"


def test_a_character_cut_off_by_the_end_is_replaced() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    text_stream = TextStream(tokenizer)
    assert text_stream.push([tokenizer.backend.token_to_id("<0xF0>")]).text == ""
    assert text_stream.finish() == REPLACEMENT


@pytest.fixture
def letters() -> Callable[[str], list[int]]:
    return lambda text: [TOKENIZERS["byte_level"].backend.token_to_id(character) for character in text]


def test_the_beginning_of_a_stop_string_is_held_back(letters: Any) -> None:
    text_stream = TextStream(TOKENIZERS["byte_level"], stop=("STOP",))
    assert text_stream.push(letters("abS")).text == "ab"
    assert text_stream.push(letters("T")).text == ""
    assert text_stream.push(letters("x")).text == "STx"
    assert text_stream.push(letters("STO")).text == ""
    delta = text_stream.push(letters("Pmore"))
    assert (delta.text, delta.stopped) == ("", True)
    assert text_stream.push(letters("x")).text == ""
    assert text_stream.finish() == ""


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stop: list[str]) -> None:
    text_stream, backend = TextStream(TOKENIZERS["byte_level"], stop), TOKENIZERS["byte_level"].backend
    seen = given_out = ""
    for character in text:
        delta = text_stream.push([backend.token_to_id(character)])
        seen, given_out = seen + character, given_out + delta.text
        if delta.stopped:
            return
        beginnings = [string[:length] for string in stop for length in range(1, len(string))]
        held = max((len(beginning) for beginning in beginnings if seen.endswith(beginning)), default=0)
        assert given_out == seen[: len(seen) - held]


def test_what_was_held_back_comes_at_the_end(letters: Any) -> None:
    text_stream = TextStream(TOKENIZERS["byte_level"], stop=("STOP",))
    assert text_stream.push(letters("abST")).text == "ab"
    assert text_stream.finish() == "ST"


def test_the_earliest_of_several_stop_strings_counts(letters: Any) -> None:
    text_stream = TextStream(TOKENIZERS["byte_level"], stop=("lo", "ell"))
    delta = text_stream.push(letters("hello"))
    assert (delta.text, delta.stopped) == ("h", True)


def test_real_tokenizer_streams_what_it_decodes(smollm2: Any) -> None:
    tokenizer: Tokenizer = smollm2.tokenizer
    tokens = [*tokenizer.encode("Grüße aus 東京 🙂🙃!\n\n1. Ünïcödé"), 2, 49151, 1000]
    pieces, _ = stream(tokenizer, tokens, [])
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert REPLACEMENT not in "".join(pieces)
