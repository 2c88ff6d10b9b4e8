"""A small byte-level tokenizer: every text is encodable, and each token is one byte unless merged."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from infer_engine.model.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['user', 'assistant', 'system'] %}{{ raise_exception('unknown role') }}{% endif %}"
    "{{ message.role }}:{{ message.content }}\n{% endfor %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    eos = backend.token_to_id("<eos>")
    assert eos is not None
    return Tokenizer(backend, chat_template=TEMPLATE, eos_token_ids=frozenset({eos}))
