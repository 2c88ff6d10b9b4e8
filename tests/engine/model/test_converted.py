"""GGUF files are converted once, completely or not at all, and again when the result was damaged."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from infer_engine.config import EngineConfig
from infer_engine.errors import ModelLoadError
from infer_engine.model.converted import MANIFEST, convert_once, is_intact, models_directory
from infer_engine.model.loader import load_model
from infer_engine.model.source import resolve_model
from infer_engine.request import SamplingParams


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inferengine" / "models"


def test_converted_once_then_found(tiny_gguf: Path, cache: Path) -> None:
    directory = resolve_model(tiny_gguf)
    assert directory.parent == cache
    assert directory.name.startswith("tiny-model-")
    written = (directory / MANIFEST).stat().st_mtime_ns
    assert resolve_model(str(tiny_gguf)) == directory
    assert (directory / MANIFEST).stat().st_mtime_ns == written
    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == []  # nothing half made is left
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o644}


def test_the_converted_model_loads(tiny_gguf: Path, cache: Path) -> None:
    loaded = load_model(tiny_gguf, EngineConfig(device="cpu"))
    assert loaded.directory is not None
    assert loaded.directory.parent == cache
    assert loaded.tokenizer is not None
    assert loaded.model.info.dtype == torch.bfloat16
    assert loaded.model.info.eos_token_ids == {0}
    assert loaded.tokenizer.chat([{"role": "user", "content": "he"}])[0] == 1
    assert load_model(tiny_gguf, EngineConfig(device="cpu")).revision == loaded.revision


@pytest.mark.parametrize("damage", ["truncate", "overwrite", "remove", "manifest"])
def test_a_damaged_directory_is_made_anew(damage: str, tiny_gguf: Path, cache: Path) -> None:
    directory = convert_once(tiny_gguf)
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    if damage == "truncate":
        os.truncate(weights, len(content) // 2)
    elif damage == "overwrite":
        weights.write_bytes(b"\0" * len(content))
    elif damage == "remove":
        (directory / "tokenizer.json").unlink()
    else:
        (directory / MANIFEST).write_text("{")
    assert not is_intact(directory)
    assert convert_once(tiny_gguf) == directory
    assert is_intact(directory)
    assert weights.read_bytes() == content
    assert (directory / "tokenizer.json").is_file()


def test_two_processes_convert_once(tiny_gguf: Path, cache: Path) -> None:
    code = (
        "import logging, sys; logging.basicConfig(format='%(message)s', stream=sys.stdout)\n"
        "from infer_engine.model.source import resolve_model\n"
        f"print('at', resolve_model({str(tiny_gguf)!r}))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sum("converting tiny model.gguf" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_a_changed_file_is_another_model(tiny_gguf: Path, cache: Path, tmp_path: Path) -> None:
    changed = tmp_path / tiny_gguf.name
    content = bytearray(tiny_gguf.read_bytes())
    content[-100] ^= 1
    changed.write_bytes(content)
    assert convert_once(tiny_gguf) != convert_once(changed)


def test_a_cache_that_can_not_be_written(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where the directory should be: refused for every user, root too."""
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ModelLoadError, match="set XDG_CACHE_HOME"):
        convert_once(tiny_gguf)


def test_the_cache_is_in_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_directory() == tmp_path / ".cache" / "inferengine" / "models"


@pytest.mark.parametrize("content", [b"", b"something else", "truncated"])
def test_a_file_that_is_no_gguf_model(content: bytes | str, tiny_gguf: Path, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(tiny_gguf.read_bytes()[:3000] if isinstance(content, str) else content)
    with pytest.raises(ModelLoadError, match=r"bad\.gguf"):
        convert_once(file)
    assert [path for path in cache.iterdir() if path.is_dir()] == []


def test_the_real_model_answers(smollm2: Any, ragged_run: Any, rows: Any) -> None:
    """Greedy generation through the pool, by hand."""
    from infer_engine.model.sampler import Sampler

    tokenizer = smollm2.tokenizer
    assert smollm2.model.info.eos_token_ids == {2}
    assert json.loads((smollm2.directory / "config.json").read_text())["bos_token_id"] == 1
    tokens = tokenizer.chat([{"role": "user", "content": "What is the capital of France? Answer in one sentence."}])
    num_prompt = len(tokens)
    run, sampler = ragged_run(smollm2.model), Sampler()
    state = sampler.new_state(SamplingParams(temperature=0), tokens)
    start = 0
    for _ in range(30):
        logits = run.step(rows(tokens, range(512), start, len(tokens)))
        start = len(tokens)
        token_id = sampler.sample(logits, [state])[0].token_id
        if token_id in smollm2.model.info.eos_token_ids:
            break
        tokens = [*tokens, token_id]
    assert "Paris" in tokenizer.decode(tokens[num_prompt:])
