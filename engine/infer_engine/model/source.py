"""From the name of a model to a directory with safetensors and tokenizer files.

In: a path, `package://<package>/<file or folder>`, `hf://<org>/<name>@<revision>`, `s3://<bucket>/<prefix>`, or the URL of a
GGUF file or a directory; the digest that it must have, if one is asked for. Out: a directory, after a download or a one-time
conversion where needed, and its revision. No torch is loaded unless a GGUF file has to be converted. Nothing that could run
code is ever fetched or read: no pickled weights, no remote code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from infer_engine.errors import ModelLoadError
from infer_engine.model.fetch import download
from infer_engine.model.fetch.digest import check_form, is_model_file, require
from infer_engine.model.fingerprint import file_fingerprint

HTTP_TOKEN = "INFERENGINE_HTTP_TOKEN"
"""Environment variable with the bearer token for http:// and https://."""
_MAX_HEADER_BYTES = 100 * 2**20  # the safetensors format's own limit


def resolve_model(uri: str | Path, digest: str | None = None) -> Path:
    """The model's directory on this machine, of that content where a digest is given (fetch/digest.py says over what).

    Raises ModelLoadError that says what is missing and what to do.
    """
    if digest is not None:
        check_form(digest)
    path = locate(uri, digest)
    if path.suffix == ".gguf":
        from infer_engine.model.converted import convert_once

        return convert_once(path, digest)
    return path


def locate(uri: str | Path, digest: str | None = None) -> Path:
    """The model as it came: a directory, or a GGUF file. Raises ModelLoadError."""
    text = str(uri)
    scheme, separator, _ = text.partition("://")
    if separator and scheme in ("http", "https"):
        from infer_engine.model.fetch.web import Web

        return download.fetch(Web(text, os.environ.get(HTTP_TOKEN)), digest)
    if separator and scheme == "s3":
        from infer_engine.model.fetch.s3 import Bucket

        return download.fetch(Bucket.of(text, os.environ), digest)
    if separator and scheme == "hf":
        from infer_engine.model.fetch import hub

        return hub.fetch(text, digest)
    path = _on_this_machine(text, scheme if separator else "")
    if digest is not None:
        require(path, digest, text)
    return path


def _on_this_machine(uri: str, scheme: str) -> Path:
    if scheme == "pvc":
        raise ModelLoadError(f"{uri}: a claim is mounted on a cluster alone; give the directory itself")
    if scheme not in ("", "package", "file"):
        raise ModelLoadError(f"model: got {uri!r}; must be a path, package://, hf://, s3://, https:// or http://")
    path = _inside_package(uri) if scheme == "package" else Path(uri.removeprefix("file://")).expanduser()
    if path.suffix == ".gguf" and not path.is_file():
        raise ModelLoadError(f"{path}: no such file; give the path of a GGUF file or of a model directory")
    if path.suffix != ".gguf" and not path.is_dir():
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
            elsewhere = [name for name in names if not is_model_file(name)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{index}: not a readable index of weights; fetch the model again") from error
        if elsewhere:  # no digest would be over it
            raise ModelLoadError(f"{index}: names {elsewhere[0]!r}; must name .safetensors files beside it")
        weights = tuple(directory / name for name in names)
    else:
        found = sorted(file for file in directory.glob("*.safetensors") if is_model_file(file.name))
        weights = tuple([file for file in found if file.name.startswith("model")] or found)
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


def digest_checkpoint(checkpoint: Checkpoint) -> str:
    """The model's revision: SHA-256 over config.json and the name and fingerprint of each weight file.

    Equal for copies of a model in different places. Cheap enough to be computed at every load.
    """
    digest = hashlib.sha256((checkpoint.directory / "config.json").read_bytes())
    for file in checkpoint.weights:
        digest.update(f"\0{file.name}\0{file_fingerprint(file)}".encode())
    return digest.hexdigest()
