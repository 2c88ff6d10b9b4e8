"""From what a user names as the model to what the engine runs.

In: a URI, a path, a transformers model, or an object of the user's own, with the engine's configuration. Out: a LoadedModel.
A model that can't be served, or would be served wrongly, is refused here with a ModelLoadError.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from infer_engine.config import EngineConfig
from infer_engine.errors import ConfigError, ModelLoadError
from infer_engine.model import self_check
from infer_engine.model.packed import pack_linears
from infer_engine.model.protocol import CacheAwareModel, ModelInfo, RaggedModel
from infer_engine.model.quiet import quiet_transformers
from infer_engine.model.runner import SequenceModelRunner
from infer_engine.model.source import Checkpoint, digest_checkpoint, inspect_checkpoint, resolve_model
from infer_engine.model.tokenizer import Tokenizer
from infer_engine.model.transformers import TransformersModel

__all__ = ["LoadedModel", "Model", "check_sizes", "load_model", "resolve_model"]

Model = str | Path | PreTrainedModel | CacheAwareModel | RaggedModel

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: RaggedModel
    tokenizer: Tokenizer | None
    """None for a model that was given as an object, and for a directory without tokenizer files."""
    directory: Path | None
    revision: str
    """Identity of the weights: computed K/V of one revision mean nothing to another. See `digest_checkpoint`."""


def load_model(model: Model, config: EngineConfig) -> LoadedModel:
    """A transformers model given as an object is changed: moved, cast if the configuration says so, and set to attend
    through the pool. Its linear layers stay as they are."""
    if isinstance(model, (str, Path)):
        return _load_directory(resolve_model(model), config)
    if isinstance(model, PreTrainedModel):
        return _load_pretrained(model, config)
    if isinstance(model, CacheAwareModel):  # before RaggedModel: a torch module of that kind has a `forward` too
        return LoadedModel(SequenceModelRunner(model), None, None, _digest_object(model, model.info))
    if isinstance(model, RaggedModel):
        return LoadedModel(model, None, None, _digest_object(model, model.info))
    raise ModelLoadError(
        f"model: got {type(model).__name__}; must be a path or URI, a transformers model, or an object with the methods of "
        "CacheAwareModel or RaggedModel"
    )


def check_sizes(config: EngineConfig, info: ModelInfo) -> None:
    """Raise ConfigError where the configuration states sizes that are not the model's."""
    for name, actual in (("num_layers", info.num_layers), ("kv_dim", info.kv_dim)):
        given = getattr(config, name)
        if given is not None and given != actual:
            raise ConfigError(f"{name}: got {given}; the model {info.name} has {actual} (leave it out to read it)")


def _load_directory(directory: Path, config: EngineConfig) -> LoadedModel:
    checkpoint = inspect_checkpoint(directory)
    has_tokenizer = any((directory / name).is_file() for name in _TOKENIZER_FILES)
    tokenizer = Tokenizer.from_directory(directory) if has_tokenizer else None
    device = _device(config)
    module = _read_weights(checkpoint, config)
    module.to(device)  # type: ignore[arg-type]
    pack_linears(module)
    ragged = TransformersModel(
        module,
        name=directory.name,
        eos_token_ids=tokenizer.eos_token_ids if tokenizer is not None else frozenset(),
        device=device,
    )
    self_check.check(ragged)
    return LoadedModel(ragged, tokenizer, directory, digest_checkpoint(checkpoint))


def _read_weights(checkpoint: Checkpoint, config: EngineConfig) -> PreTrainedModel:
    directory = checkpoint.directory
    dtype = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    try:
        with quiet_transformers():
            settings = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                config=settings,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # every way in which a stranger's files can be wrong
        raise ModelLoadError(f"{directory}: transformers can't load this model: {error}") from error
    module: PreTrainedModel
    module, report = loaded
    # The library fills what is missing with random numbers and goes on
    missing = sorted({*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])})
    if missing:
        raise ModelLoadError(
            f"{directory}: the weights lack {len(missing)} tensors that config.json asks for, or have them in another "
            f"shape ({', '.join(missing[:3])}); fetch the model again"
        )
    return module


def _load_pretrained(module: PreTrainedModel, config: EngineConfig) -> LoadedModel:
    device = module.device if config.device == "auto" else _device(config)
    revision = _digest_parameters(module)
    module.to(device)  # type: ignore[arg-type]
    if config.dtype != "auto":
        module.to(getattr(torch, config.dtype))
    attention = module.config._attn_implementation
    try:
        ragged = TransformersModel(module, name=module.config.name_or_path or type(module).__name__, device=device)
        self_check.check(ragged)
    except ModelLoadError:
        with quiet_transformers():
            module.set_attn_implementation(attention)  # it is the caller's, and still works for everything else
        raise
    return LoadedModel(ragged, None, None, revision)


def _device(config: EngineConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: got 'cuda', but torch finds no CUDA device; use 'cpu' or 'auto'")
    return torch.device(config.device)


def _digest_parameters(module: PreTrainedModel) -> str:
    """Like digest_checkpoint, of a model in memory: configuration, and up to 1024 evenly spaced values of each tensor."""
    digest = hashlib.sha256(module.config.to_json_string().encode())
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 1024)].to(device="cpu", dtype=torch.float64)
        digest.update(f"\0{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        digest.update(np.ascontiguousarray(sample.numpy()).tobytes())
    return digest.hexdigest()


def _digest_object(model: object, info: ModelInfo) -> str:
    """Of an object of the user's own only its kind and sizes are known; its engine's cache lives no longer than it does."""
    described = replace(info, device=torch.device("cpu"), eos_token_ids=frozenset())
    return hashlib.sha256(f"{type(model).__module__}.{type(model).__qualname__}\0{described!r}".encode()).hexdigest()
