"""Keeps models that had to be converted, so that it happens once per machine.

In: a GGUF file. Out: a directory in the user's cache with the same model as safetensors. A directory appears there complete
or not at all, one process converts while others wait, and one that was damaged since is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from pathlib import Path

from infer_engine.errors import ModelLoadError
from infer_engine.model.fetch.cache import locked, models_directory
from infer_engine.model.fingerprint import describe, file_fingerprint

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Part of a directory's name: raise it when the conversion changes, and old directories are no longer used
FORMAT = 1


def convert_once(file: Path, digest: str | None = None) -> Path:
    """The converted form of a GGUF file. Raises ModelLoadError where it can't be read or the cache can't be written.

    With the file's digest known, what was made of a file that differs in a single byte is not used.
    """
    identity = hashlib.sha256(f"{FORMAT}\0{digest or file_fingerprint(file)}".encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem)
    directory = models_directory() / f"{name}-{identity[:16]}"
    if is_intact(directory):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with locked(directory.with_suffix(directory.suffix + ".lock")):
            if not is_intact(directory):  # another process may have made it while we waited
                _rebuild(file, directory)
    except OSError as error:
        raise ModelLoadError(
            f"{directory}: the converted model can't be kept here ({error}); set XDG_CACHE_HOME to a directory that is "
            "writable and has room for it"
        ) from error
    return directory


def is_intact(directory: Path) -> bool:
    """Whether all files are there and as they were written (sizes and fingerprints; a few milliseconds)."""
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        return all(describe(directory / name) == description for name, description in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _rebuild(file: Path, directory: Path) -> None:
    if directory.exists():
        # A warning, like the line below it: nobody may have asked for INFO, and loading takes long this time
        logger.warning("%s is damaged; it is made anew", directory)
        shutil.rmtree(directory)
    logger.warning("converting %s to safetensors, once; this takes a minute for each GB or so", file.name)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        from infer_engine.model.gguf import convert

        convert(file, temporary)
        _write_manifest(temporary)
        _let_others_read(temporary)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.warning("converted %s to %s", file.name, directory)


def _let_others_read(directory: Path) -> None:
    """mkdtemp makes the directory private, and safetensors its file; a pod may read the cache as another user."""
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.chmod(0o644)


def _write_manifest(directory: Path) -> None:
    files = {path.name: describe(path) for path in sorted(directory.iterdir())}
    (directory / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
