"""Converts a GGUF file to safetensors in bfloat16, with its tokenizer and chat template.

In: a GGUF file. Out: a directory as transformers writes it. GGUF's quantised blocks are unpacked to float32 by transformers
and rounded to bfloat16, which has enough digits for any of its formats of 8 bits and fewer.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from infer_engine.errors import ModelLoadError
from infer_engine.model.quiet import quiet_transformers

MAGIC = b"GGUF"


def convert(file: Path, directory: Path) -> None:
    """Write the converted model into `directory`. Raises ModelLoadError where the file can't be read."""
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise ModelLoadError(f"{file}: not a GGUF file; fetch the model again")
    try:
        with quiet_transformers():
            model = _load(file)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # the reader raises whatever the damaged bytes lead it to
        raise ModelLoadError(
            f"{file}: can't be read as a GGUF model ({type(error).__name__}: {error}); fetch it again, or give a "
            "safetensors directory if its architecture is not one that transformers reads from GGUF"
        ) from error
    with quiet_transformers():
        _plain(model).save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def _load(file: Path) -> PreTrainedModel:
    # Newer releases of transformers can keep the blocks packed, and do by default
    config_class = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {} if config_class is None else {"quantization_config": config_class(dequantize=True)}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, trust_remote_code=False, **options
    )
    return model


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that knows nothing of quantisation; the one read from GGUF refuses to be saved."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
