"""From the name of a model to a directory with safetensors and tokenizer files.

In: a path, `package://<package>/<file or folder>`, or `hf://<org>/<name>@<revision>`. Out: a directory, after a download or a
one-time conversion where needed, and its digest. No torch is loaded unless a GGUF file has to be converted. Nothing that
could run code is ever fetched or read: no pickled weights, no remote code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from infer_engine.errors import ModelLoadError

logger = logging.getLogger(__name__)

# Files of a hub repository that a model needs; anything in sub-folders is another format of the same
HUB_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_MAX_HEADER_BYTES = 100 * 2**20  # the safetensors format's own limit


def resolve_model(uri: str | Path) -> Path:
    """The model's directory on this machine. Raises ModelLoadError that says what is missing and what to do."""
    text = str(uri)
    if text.startswith("hf://"):
        return _download(text)
    path = _inside_package(text) if text.startswith("package://") else Path(text.removeprefix("file://")).expanduser()
    scheme, separator, _ = text.partition("://")
    if separator and scheme not in ("package", "file"):
        raise ModelLoadError(f"model: got {text!r}; must be a path, package://, or hf://")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelLoadError(f"{path}: no such file; give the path of a GGUF file or of a model directory")
        from infer_engine.model.converted import convert_once

        return convert_once(path)
    if not path.is_dir():
        hint = "a model is a directory with config.json and .safetensors files, or a .gguf file"
        raise ModelLoadError(f"{path}: {'not a model' if path.exists() else 'no such directory'}; {hint}")
    return path


def _inside_package(uri: str) -> Path:
    """Where an installed Python package keeps the file; the package itself is not imported."""
    package, _, inside = uri.removeprefix("package://").partition("/")
    try:
        spec = importlib.util.find_spec(package) if package and "." not in package else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError(f"{uri}: no Python package {package!r} is installed; install it, or give another model")
    roots = [Path(root).resolve() for root in spec.submodule_search_locations]
    for root in roots:
        path = (root / inside).resolve()
        if path.exists() and path.is_relative_to(root):
            return path
    raise ModelLoadError(f"{uri}: the package {package!r} has no {inside!r} in {roots[0]}")


def _download(uri: str) -> Path:
    """The hub's library keeps what it has fetched, and never looks at it again: what was damaged since is fetched anew."""
    directory = _snapshot(uri)
    try:
        inspect_checkpoint(directory)
    except ModelLoadError as damage:
        logger.warning("%s: fetching it now", damage)
        directory = _snapshot(uri, anew=True)
        inspect_checkpoint(directory)  # without a hub it is the same as before
    return directory


def _snapshot(uri: str, *, anew: bool = False) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = uri.removeprefix("hf://").partition("@")
    try:
        directory = huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=list(HUB_PATTERNS),
            ignore_patterns=["*/*"],
            force_download=anew,
            endpoint=os.environ.get("HF_ENDPOINT"),  # read now: the library reads it when first imported
        )
    except GatedRepoError as error:
        raise ModelLoadError(f"{uri}: access is gated; accept its terms and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{uri}: no revision {revision!r}; give a branch, a tag or a commit") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(f"{uri}: no such model; check the name, or set HF_TOKEN if it is private") from error
    except HFValidationError as error:
        raise ModelLoadError(f"{uri}: not a model name; write hf://<org>/<name>@<revision>") from error
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"{uri}: not in the local cache, and the hub can't be reached; check the network, or set HF_ENDPOINT to a mirror"
        ) from error
    except OSError as error:  # what httpx and the file system raise
        raise ModelLoadError(f"{uri}: download failed: {error}") from error
    return Path(directory)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory whose weight files are all there and whole (by their headers)."""

    directory: Path
    weights: tuple[Path, ...]


def inspect_checkpoint(directory: Path) -> Checkpoint:
    """Raises ModelLoadError naming the file that is missing, truncated or of a refused kind."""
    if not (directory / "config.json").is_file():
        raise ModelLoadError(f"{directory / 'config.json'}: missing; a model directory needs it, fetch the model again")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelLoadError(f"{index}: not a readable index of weights; fetch the model again") from error
        weights = tuple(directory / name for name in names)
    else:
        weights = tuple(sorted(directory.glob("model*.safetensors")) or sorted(directory.glob("*.safetensors")))
    if not weights:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in directory.glob(pattern))
        reason = f"only pickled weights ({pickled[0]}), which are refused" if pickled else "no .safetensors file"
        raise ModelLoadError(f"{directory}: {reason}; fetch or convert the model to safetensors")
    for file in weights:
        _require_whole(file)
    return Checkpoint(directory, weights)


def _require_whole(file: Path) -> None:
    """The header says how long the file must be (https://huggingface.co/docs/safetensors, "Format")."""
    advice = "fetch the model again"
    try:
        size = file.stat().st_size
        header = read_header(file)
        length = (
            8
            + len(header)
            + max(
                (entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"),
                default=0,
            )
        )
    except FileNotFoundError as error:
        raise ModelLoadError(f"{file}: missing; {advice}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelLoadError(f"{file}: not a readable safetensors file; {advice}") from error
    if size != length:
        raise ModelLoadError(f"{file}: has {size} bytes where its header says {length}; {advice}")


def read_header(file: Path) -> bytes:
    """The JSON header of a safetensors file."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"header of {length} bytes")
        return stream.read(length)


def file_fingerprint(file: Path) -> str:
    """SHA-256 over the size, the first MiB and 64 evenly spaced blocks of 4 KiB: milliseconds for a file of any size.

    Training changes nearly every weight and a truncation changes the size, so both show; a hand-made change of a few bytes
    may not. It is an identity, not a proof against an attacker.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        digest.update(stream.read(2**20))
        for index in range(_SAMPLES):
            stream.seek(size * index // _SAMPLES)
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def digest_checkpoint(checkpoint: Checkpoint) -> str:
    """The model's revision: SHA-256 over config.json and the name and fingerprint of each weight file.

    Equal for copies of a model in different places. Cheap enough to be computed at every load.
    """
    digest = hashlib.sha256((checkpoint.directory / "config.json").read_bytes())
    for file in checkpoint.weights:
        digest.update(f"\0{file.name}\0{file_fingerprint(file)}".encode())
    return digest.hexdigest()
