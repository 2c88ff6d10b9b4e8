"""hf://ORG/NAME@REVISION in, the directory in the hub library's own cache out.

The library resumes, locks and appears whole by itself. It never looks again at what it has fetched: that is done here.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from infer_engine.errors import DigestMismatchError, ModelLoadError
from infer_engine.model.fetch.digest import PATTERNS, is_model_file, require
from infer_engine.model.source import inspect_checkpoint

logger = logging.getLogger(__name__)


def fetch(uri: str, digest: str | None) -> Path:
    """What was damaged since it came is fetched anew. Raises ModelLoadError."""
    directory = _snapshot(uri)
    try:
        _check(directory, digest, uri)
    except ModelLoadError as damage:
        if isinstance(damage, DigestMismatchError) and all(map(_is_as_it_came, _files(directory))):
            raise  # what the hub has is something else
        logger.warning("%s: fetching it now", damage)
        directory = _snapshot(uri, anew=True)
        _check(directory, digest, uri)  # without a hub it is the same as before
    return directory


def _check(directory: Path, digest: str | None, uri: str) -> None:
    inspect_checkpoint(directory)
    if digest is not None:
        require(directory, digest, uri)


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if is_model_file(path.name)]


def _is_as_it_came(path: Path) -> bool:
    """The hub's ETags, after which its library names its files, are hashes: SHA-256 of a large one, Git's of a small one."""
    name, content = path.resolve().name, path.read_bytes() if path.stat().st_size < 2**24 else None
    if content is not None and len(name) == 40:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == name
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == name


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
            allow_patterns=list(PATTERNS),
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
