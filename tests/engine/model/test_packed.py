"""Packed linear layers compute what plain ones do, and replace only those."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from infer_engine.model.packed import PackedLinear, is_available, pack_linears


@pytest.mark.parametrize("bias", [False, True])
def test_equal_to_plain_at_any_batch_size(bias: bool) -> None:
    linear = nn.Linear(96, 160, bias=bias).to(torch.bfloat16)
    packed = PackedLinear(linear)
    inputs = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.inference_mode():
        expected = linear(inputs)
        for count in (1, 2, 3, 8, 31, 64):
            torch.testing.assert_close(packed(inputs[:count]), expected[:count], atol=1e-2, rtol=1e-2)
        assert packed(inputs[None]).shape == (1, 64, 160)


def test_rows_do_not_depend_on_their_number() -> None:
    packed = PackedLinear(nn.Linear(576, 1536, bias=False).to(torch.bfloat16))
    inputs = torch.randn(32, 576).to(torch.bfloat16)
    with torch.inference_mode():
        together = packed(inputs)
        assert all(torch.equal(packed(inputs[:count]), together[:count]) for count in (1, 2, 3, 7, 16))


def test_a_model_with_a_tied_output_layer(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama", tie_word_embeddings=True).to(torch.bfloat16)
    tokens = torch.tensor([[5, 6, 7, 8]])
    embedding = model.get_input_embeddings().weight
    with torch.inference_mode():
        before = model(input_ids=tokens).logits
        assert pack_linears(model) == 3 * 7 + 1
        torch.testing.assert_close(model(input_ids=tokens).logits, before, atol=0.1, rtol=0.05)
    assert isinstance(model.lm_head, PackedLinear)
    assert model.get_input_embeddings().weight is embedding


def test_only_plain_bfloat16_layers_are_replaced() -> None:
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Other(8, 8).to(torch.bfloat16), nn.Embedding(4, 8).to(torch.bfloat16))
    assert pack_linears(model) == 0
    assert type(model[0]) is nn.Linear


def test_where_packing_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_available()
    monkeypatch.setattr("infer_engine.model.packed.is_available", lambda: False)
    model = nn.Sequential(nn.Linear(8, 8).to(torch.bfloat16))
    assert pack_linears(model) == 0
    assert type(model[0]) is nn.Linear
