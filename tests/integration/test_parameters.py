"""Every parameter of a request arrives at the sampler: what a client asks for shows in what it gets, through the whole stack."""

import asyncio

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

PROMPT = "The quick brown fox jumps over the lazy dog"
N = 24
GREEDY = {"max_tokens": N, "temperature": 0, "ignore_eos": True}
SAMPLED = {"max_tokens": N, "temperature": 1.0, "seed": 11, "ignore_eos": True}
EOS = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_dir):
    return AutoTokenizer.from_pretrained(tiny_dir)


@pytest.fixture(scope="module")
def acme(shared_pod):
    with shared_pod.client("acme") as client:
        yield client


@pytest.fixture
def ask(pod, acme):
    """Through the client for threads; `pod` is ready."""

    def ask(prompt=PROMPT, **params):
        return acme.generate(prompt, timeout=120, **params)

    return ask


@pytest.fixture
def greedy(ask):
    return ask(**GREEDY).token_ids


def test_max_tokens(ask):
    assert len(ask(**GREEDY | {"max_tokens": 7}).token_ids) == 7
    without = {name: value for name, value in GREEDY.items() if name != "max_tokens"}
    assert ask(**without).usage.output_tokens == 256  # the default


def test_the_three_forms_of_a_prompt(ask, greedy, tokenizer):
    ids = tokenizer(PROMPT)["input_ids"]
    assert ask(None, token_ids=ids, **GREEDY).token_ids == greedy
    messages = [{"role": "user", "content": "Hello"}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    answer = ask(None, messages=messages, model="test-model", **GREEDY)
    assert answer.usage.prompt_tokens == len(chat)
    assert answer.token_ids == ask(None, token_ids=chat, **GREEDY).token_ids


def test_temperature(ask, greedy):
    assert ask(**SAMPLED | {"temperature": 1e-4}).token_ids == greedy
    assert ask(**SAMPLED).token_ids != greedy


def test_seed(ask):
    first = ask(**SAMPLED).token_ids
    assert ask(**SAMPLED).token_ids == first
    assert ask(**SAMPLED | {"seed": 12}).token_ids != first
    unseeded = {name: value for name, value in SAMPLED.items() if name != "seed"}
    assert ask(**unseeded).token_ids != ask(**unseeded).token_ids


@pytest.mark.parametrize(
    "narrow", [{"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}], ids=lambda narrow: next(iter(narrow))
)
def test_a_filter_that_leaves_one_token_makes_sampling_greedy(narrow, ask, greedy):
    assert ask(**SAMPLED, **narrow).token_ids == greedy


def test_penalties_each_in_its_own_way(ask):
    """Unpenalised, this model repeats that token for ever, by a margin of about 0.15."""
    token = 41430
    prompt = {"prompt": None, "token_ids": [100, 200, token], **GREEDY}
    assert ask(**prompt).token_ids == [token] * N
    presence = ask(**prompt, presence_penalty=2.0).token_ids
    assert presence[0] == token  # output is what counts, not the prompt
    assert len(set(presence)) == N
    assert ask(**prompt, presence_penalty=0.02).token_ids == [token] * N  # does not add up
    frequency = ask(**prompt, frequency_penalty=0.02).token_ids
    assert frequency[:3] == [token] * 3
    assert frequency != [token] * N  # adds up
    assert token not in ask(**prompt, repetition_penalty=10.0).token_ids  # the prompt counts, too


def test_stop_strings_end_the_text_before_them(ask):
    whole = ask(**SAMPLED)
    stop = whole.text[len(whole.text) // 2 :][:4]
    cut = ask(**SAMPLED, stop=["never seen in this text", stop])
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert cut.usage.output_tokens == len(cut.token_ids) < N


def test_stop_token_ids_end_the_output_and_are_no_text(ask, tokenizer):
    whole = ask(**SAMPLED).token_ids
    stop = next(token for index, token in enumerate(whole) if index > 4 and token not in whole[:index])
    cut = ask(**SAMPLED, stop_token_ids=[stop])
    assert (cut.token_ids, cut.finish_reason) == (whole[: whole.index(stop) + 1], "stop")
    assert cut.text == tokenizer.decode(cut.token_ids[:-1])


def test_ignore_eos(ask):
    """This model answers a prompt that ends with its eos by the same."""
    prompt = {"prompt": None, "token_ids": [100, EOS], "max_tokens": 5, "temperature": 0}
    ended = ask(**prompt)
    assert (ended.token_ids, ended.finish_reason, ended.text) == ([EOS], "stop", "")
    assert (len(ask(**prompt, ignore_eos=True).token_ids), ask(**prompt, ignore_eos=True).finish_reason) == (
        5,
        "length",
    )


def test_logprobs_are_those_of_the_model(ask, tiny_dir, tokenizer):
    answer = ask(**GREEDY, logprobs=3)
    assert [entry["token_id"] for entry in answer.logprobs] == answer.token_ids
    ids = tokenizer(PROMPT)["input_ids"]
    model = LlamaForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([ids + answer.token_ids])).logits[0, len(ids) - 1 : -1]
    expected = logits.log_softmax(-1)
    for entry, row in zip(answer.logprobs, expected, strict=True):
        values, tokens = row.topk(3)
        assert entry["logprob"] == pytest.approx(float(row[entry["token_id"]]), abs=1e-4)
        assert [other["token_id"] for other in entry["top"]] == tokens.tolist()
        assert [other["logprob"] for other in entry["top"]] == pytest.approx(values.tolist(), abs=1e-4)
    assert [entry["top"] for entry in ask(**GREEDY, logprobs=0).logprobs] == [[]] * N
    assert ask(**GREEDY).logprobs is None


def test_a_deadline_ends_a_request_with_what_it_has(ask):
    late = ask(**GREEDY | {"max_tokens": 8000}, deadline_ms=500)
    assert late.finish_reason == "deadline"
    assert 0 < late.usage.output_tokens == len(late.token_ids) < 8000
    assert ask(**GREEDY, deadline_ms=60_000).finish_reason == "length"


def test_streamed_pieces_are_whole_characters_and_the_whole_text(pod, tokenizer):
    """Random tokens are full of halves of characters."""

    async def read(client, seed):
        stream = client.stream(PROMPT, **SAMPLED | {"seed": seed, "max_tokens": 60})
        pieces, ids = [], []
        async for delta in stream:
            pieces.append(delta.text)
            ids += delta.token_ids
        return pieces, ids

    async def read_all():
        async with pod.async_client("acme") as client:
            return await asyncio.gather(*(read(client, seed) for seed in range(16)))

    texts = []
    for pieces, ids in asyncio.run(read_all()):
        assert len(ids) == 60
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
        texts.append("".join(pieces))
    assert any(not text.isascii() for text in texts)
