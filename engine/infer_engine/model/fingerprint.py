"""A file in, what tells it apart from another one out, in milliseconds: to see damage, not to keep out an attacker."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SAMPLES, _SAMPLE_BYTES = 64, 4096


def describe(path: Path) -> dict[str, object]:
    """For a record in JSON of a file that is to stay as it is. Raises OSError."""
    return {"size": path.stat().st_size, "fingerprint": file_fingerprint(path)}


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
