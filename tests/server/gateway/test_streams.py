import asyncio

from hypothesis import given
from hypothesis import strategies as st

from infer_engine.model.tokenizer import TextStream, Tokenizer
from infer_server import ipc
from infer_server.gateway.streams import Mailbox, OutputStream
from infer_server.protocol import Tok


def play(tokenizer: Tokenizer, portions: list[list[int]], stop: tuple[str, ...] = ()) -> tuple[list[Tok], OutputStream]:
    output = OutputStream(TextStream(tokenizer, stop), tokenizer.eos_token_ids)
    toks = []
    for portion in portions:
        output.push(ipc.Tokens(1, portion))
        toks.append(output.next_tok())
    toks.append(output.last_tok())
    return [tok for tok in toks if tok is not None], output


@given(text=st.text(min_size=1, max_size=30), sizes=st.lists(st.integers(1, 5), min_size=1))
def test_ids_and_text_arrive_whole_and_once(byte_tokenizer: Tokenizer, text: str, sizes: list[int]) -> None:
    ids, portions = byte_tokenizer.encode(text), []
    while ids:
        size = sizes[len(portions) % len(sizes)]
        portions.append(ids[:size])
        ids = ids[size:]
    toks, output = play(byte_tokenizer, portions)
    assert "".join(tok.text for tok in toks) == text
    assert [id for tok in toks for id in tok.token_ids] == byte_tokenizer.encode(text)
    assert [tok.seq for tok in toks] == list(range(len(toks)))
    assert output.num_tokens == len(byte_tokenizer.encode(text))


def test_half_a_character_waits_for_its_other_half(byte_tokenizer: Tokenizer) -> None:
    first, second = byte_tokenizer.encode("é")
    toks, _ = play(byte_tokenizer, [[first], [second]])
    assert [(tok.text, tok.token_ids) for tok in toks] == [("é", [first, second])]


def test_a_stop_string_ends_text_and_tokens(byte_tokenizer: Tokenizer) -> None:
    portions = [[id] for id in byte_tokenizer.encode("one END two")]
    toks, output = play(byte_tokenizer, portions, stop=("END",))
    assert output.stopped
    assert "".join(tok.text for tok in toks) == "one "
    assert byte_tokenizer.decode([id for tok in toks for id in tok.token_ids]) == "one END"
    assert output.num_tokens == 7


def test_what_only_looked_like_a_stop_string_is_given_back(byte_tokenizer: Tokenizer) -> None:
    toks, output = play(byte_tokenizer, [byte_tokenizer.encode("one EN")], stop=("END",))
    assert not output.stopped
    assert [tok.text for tok in toks] == ["one ", "EN"]


def test_a_stop_token_is_no_text(byte_tokenizer: Tokenizer) -> None:
    (eos,) = byte_tokenizer.eos_token_ids
    toks, _ = play(byte_tokenizer, [byte_tokenizer.encode("hi"), [eos]])
    assert [(tok.text, tok.token_ids) for tok in toks] == [("hi", byte_tokenizer.encode("hi")), ("", [eos])]


def test_log_probabilities_stay_with_their_tokens(byte_tokenizer: Tokenizer) -> None:
    output = OutputStream(TextStream(byte_tokenizer, ()))
    (a, b) = byte_tokenizer.encode("ab")
    output.push(ipc.Tokens(1, [a], [(a, -0.5, [(a, -0.5), (b, -2.0)])]))
    tok = output.next_tok()
    assert tok is not None
    assert tok.logprobs == [
        {
            "token_id": a,
            "logprob": -0.5,
            "top": [{"token_id": a, "logprob": -0.5}, {"token_id": b, "logprob": -2.0}],
        }
    ]


async def test_a_mailbox_hands_over_everything_in_order() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    mailbox.put(2)
    assert await mailbox.take() == [1, 2]
    waiting = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    mailbox.put(3)
    assert await waiting == [3]
