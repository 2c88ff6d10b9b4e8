"""A model's content in, `sha256:<64 hex digits>` out: the same wherever the model lies and however it came there.

Of a file: SHA-256 of its bytes, what `sha256sum FILE` prints. Of a directory: SHA-256 of the text that

    LC_ALL=C sha256sum *.safetensors *.json *.jinja *.txt *.model *.tiktoken | LC_ALL=C sort -k 2

prints in it (patterns without a match left out): for each such file, hidden ones not counted, a line of 64 hex digits, two
spaces and the name, in the order of the names' bytes. Files of other names and folders don't count: nothing is read from them.
Nor do names with a line break or a backslash, which would let one name read as two lines.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infer_engine.errors import DigestMismatchError, ModelLoadError

# Files of a repository that a model needs; anything in sub-folders is another format of the same
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_SPECIAL = frozenset("/\\\r\n")
_FORM = re.compile(r"sha256:[0-9a-f]{64}")
_THREADS = 4  # hashing lets other threads run, and is about as fast as a disk


def is_model_file(name: str) -> bool:
    """Whether a file of that name is part of a model's directory."""
    if name.startswith(".") or not _SPECIAL.isdisjoint(name):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in PATTERNS)


def check_form(digest: str) -> None:
    """Raises ModelLoadError."""
    if not _FORM.fullmatch(digest):
        raise ModelLoadError(f"digest: got {digest!r}; must be sha256: and 64 lower-case hex digits")


def content_digest(path: Path) -> str:
    """Reads everything. Raises OSError."""
    if path.is_file():
        return f"sha256:{_sha256(path)}"
    files = sorted(
        (file for file in path.iterdir() if is_model_file(file.name) and file.is_file()),
        key=lambda file: os.fsencode(file.name),
    )
    with ThreadPoolExecutor(_THREADS) as threads:
        lines = [f"{sha}  {file.name}\n" for file, sha in zip(files, threads.map(_sha256, files), strict=True)]
    return f"sha256:{hashlib.sha256(os.fsencode(''.join(lines))).hexdigest()}"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require(path: Path, digest: str, uri: str) -> None:
    """Raises DigestMismatchError where `path` holds anything else."""
    actual = content_digest(path)
    if actual != digest:
        raise mismatch(uri, actual, digest)


def mismatch(uri: str, actual: str, digest: str, advice: str = "") -> DigestMismatchError:
    return DigestMismatchError(
        f"{uri}: its digest is {actual}, model.digest asks for {digest}; nothing is served of it: it was changed or damaged, "
        f"or model.digest is of something else{advice}"
    )
