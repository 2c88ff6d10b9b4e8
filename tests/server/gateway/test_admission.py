from typing import Any

import numpy as np
import pytest

from infer_engine.model.tokenizer import Tokenizer
from infer_server.gateway.admission import Prepared, prepare
from infer_server.gateway.errors import RefusedError
from infer_server.ipc import EngineReady
from infer_server.protocol import Generate, Message

READY = EngineReady(
    model_name="tiny",
    model_dir="",
    revision="r",
    kv_layout="k",
    max_model_len=64,
    default_max_tokens=16,
    max_cache_tokens=1000,
    vocab_size=257,
)


def admit(tokenizer: Tokenizer, **fields: Any) -> Prepared:
    return prepare(Generate(**fields), READY, "tiny", tokenizer)


def test_a_prompt_becomes_token_ids(byte_tokenizer: Tokenizer) -> None:
    prepared = admit(byte_tokenizer, prompt="héy", temperature=0, stop=["\n"], max_tokens=5)
    ids = np.frombuffer(prepared.token_ids, dtype="<i4").tolist()
    assert byte_tokenizer.decode(ids) == "héy"
    assert prepared.num_prompt_tokens == 4
    assert prepared.params == {"temperature": 0, "max_tokens": 5}  # stop strings stay here
    assert prepared.stop == ("\n",)
    assert prepared.stop_token_ids == byte_tokenizer.eos_token_ids


def test_what_can_never_fit_is_refused_before_it_is_tokenised(byte_tokenizer: Tokenizer) -> None:
    assert byte_tokenizer.longest_token == len("<eos>")
    for fields, size in (
        ({"prompt": "x" * 320}, "320 characters"),
        ({"messages": [Message("nobody", "x" * 200)] * 2}, "400 characters"),
        ({"token_ids": [-1] * 64}, "64 tokens"),
        ({"prompt": "x" * 64}, "64 tokens"),
    ):
        with pytest.raises(RefusedError, match=f"the prompt has {size}") as refusal:
            admit(byte_tokenizer, **fields)
        assert refusal.value.code == "prompt_too_long"


def test_a_refusal_does_not_send_back_all_that_came(byte_tokenizer: Tokenizer) -> None:
    for fields in ({"model": "m" * 1_000_000}, {"stop": ["s" * 1_000_000]}, {"stop_token_ids": [1] * 100_000}):
        with pytest.raises(RefusedError) as refusal:
            admit(byte_tokenizer, prompt="hi", **fields)
        assert len(refusal.value.message) < 300


def test_messages_go_through_the_chat_template(byte_tokenizer: Tokenizer) -> None:
    prepared = admit(byte_tokenizer, messages=[Message("user", "hi"), Message("assistant", "yo")])
    ids = np.frombuffer(prepared.token_ids, dtype="<i4").tolist()
    assert byte_tokenizer.decode(ids) == "user:hi\nassistant:yo\n"


def test_an_absent_max_tokens_is_the_default_or_the_room_left(byte_tokenizer: Tokenizer) -> None:
    assert admit(byte_tokenizer, prompt="x").max_tokens == 16
    assert admit(byte_tokenizer, prompt="x" * 60).max_tokens == 4


def test_the_pool_bounds_a_request_as_the_model_does(byte_tokenizer: Tokenizer) -> None:
    small = EngineReady("tiny", "", "r", "k", 64, 16, 10, 257)
    with pytest.raises(RefusedError, match="room for 10"):
        prepare(Generate(prompt="x" * 10), small, "tiny", byte_tokenizer)


def test_ignore_eos_makes_eos_an_ordinary_token(byte_tokenizer: Tokenizer) -> None:
    prepared = admit(byte_tokenizer, prompt="x", ignore_eos=True, stop_token_ids=[7])
    assert prepared.stop_token_ids == {7}
    assert prepared.params["ignore_eos"] is True
    assert prepared.params["stop_token_ids"] == [7]


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"prompt": "x", "model": "gpt-5"}, "unknown_model", "'tiny'"),
        ({"prompt": ""}, "invalid_request", "prompt: is empty"),
        ({"messages": []}, "invalid_request", "messages: is empty"),
        ({"token_ids": []}, "invalid_request", "token_ids: is empty"),
        ({"token_ids": [1, -1]}, "invalid_request", "token_ids: got -1"),
        ({"token_ids": [257]}, "invalid_request", "from 0 to 256"),
        ({"token_ids": [2**70]}, "invalid_request", "from 0 to 256"),
        ({"prompt": "x", "max_tokens": -1}, "invalid_request", "max_tokens: got -1"),
        ({"prompt": "x", "max_tokens": 0}, "invalid_request", "max_tokens: got 0"),
        ({"prompt": "x", "max_tokens": 64}, "invalid_request", "at most 63 fit"),
        ({"prompt": "x", "temperature": float("nan")}, "invalid_request", "temperature: got nan"),
        ({"prompt": "x", "top_p": 1.5}, "invalid_request", "top_p: got 1.5"),
        ({"prompt": "x", "logprobs": 21}, "invalid_request", "logprobs: got 21"),
        ({"prompt": "x", "stop": [""]}, "invalid_request", "stop: each must be"),
        ({"prompt": "x" * 64}, "prompt_too_long", "has 64 tokens"),
        ({"messages": [Message("wizard", "hi")]}, "invalid_request", "unknown role"),
    ],
)
def test_a_wrong_request_is_refused_by_name(
    fields: dict[str, Any], code: str, message: str, byte_tokenizer: Tokenizer
) -> None:
    with pytest.raises(RefusedError) as caught:
        admit(byte_tokenizer, **fields)
    assert caught.value.code == code
    assert message in caught.value.message
    assert caught.value.retry_ms is None
