"""From a remote's files to a directory in the cache that is whole.

In: a Remote, and the digest that its content must have, if one is asked for. Out: the directory. It appears complete or not at
all; what had come when a process died is not fetched again; of several processes one fetches and the others wait.

The directory's name ends in hashes of the URI and of the files' sizes and versions (ETags), so a remote that changed is another
directory. Beside the model it has RECORD: what was fetched, to find it by its digest and to see damage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from infer_engine.errors import ModelLoadError
from infer_engine.model.fetch.cache import locked, locked_if_free, models_directory
from infer_engine.model.fetch.digest import content_digest, mismatch
from infer_engine.model.fingerprint import describe

logger = logging.getLogger(__name__)

T = TypeVar("T")

RECORD = ".fetched.json"
# Part of a directory's name: raise it when the layout changes, and old directories are no longer used
FORMAT = 1
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before another try; after the last one it has failed."""
PROGRESS_BYTES = 8 * 2**20
"""A try that brought so much has not failed: the pauses begin anew."""
_FILES_AT_ONCE = 4
_CHANGES = 3  # of the remote, in the middle, before that is an error


class TransientError(Exception):
    """May pass by itself: no connection, a server that is too busy, a stream that broke off."""


class ChangedError(Exception):
    """A file is no longer the one that was listed."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str
    """in the model's directory; no folders"""
    size: int
    version: str
    """Equal as long as the content is (an ETag); empty where the server tells none."""


class Remote(Protocol):
    @property
    def uri(self) -> str: ...

    @property
    def shown(self) -> str:
        """The URI without anything secret."""
        ...

    @property
    def single(self) -> bool:
        """One file, which is the model, instead of a directory."""
        ...

    def files(self) -> Sequence[RemoteFile]:
        """Raises TransientError, or ModelLoadError where there is no model."""
        ...

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        """Where the stream begins, `start` or 0, and the stream: bytes of the listed version alone. It may end early.

        The call and the stream raise TransientError, ChangedError or ModelLoadError.
        """
        ...


def fetch(remote: Remote, digest: str | None, pauses: Sequence[float] = PAUSES) -> Path:
    """The model: a directory, or a file for a `single` remote. Raises ModelLoadError, a DigestMismatchError among them."""
    try:
        directory = _fetch(remote, digest, pauses)
    except OSError as error:
        raise ModelLoadError(
            f"{remote.shown}: can't be kept in {models_directory()} ({error}); set XDG_CACHE_HOME to a directory that is "
            "writable and has room for it"
        ) from error
    return _model_in(directory) if remote.single else directory


def _fetch(remote: Remote, digest: str | None, pauses: Sequence[float]) -> Path:
    models_directory().mkdir(parents=True, exist_ok=True)
    if digest is not None:
        found = _kept_by_digest(digest, remote.single)
        if found is not None:
            return found
    for _ in range(_CHANGES):
        try:
            files = _persistently(remote.files, pauses)
            directory = _directory_of(remote, files)
            if not is_whole(directory):
                with _taking_turns(directory):
                    if not is_whole(directory):  # another process may have made it while we waited
                        _download_all(remote, files, directory, pauses)
            break
        except TransientError as error:
            found = _newest_copy(remote) if digest is None else None
            if found is None:
                raise ModelLoadError(f"{remote.shown}: can't be fetched: {error}") from error
            logger.warning("%s: %s; the copy in %s is used", remote.shown, error, found)
            return found
        except ChangedError as error:
            logger.warning("%s: %s; starting again", remote.shown, error)
    else:
        raise ModelLoadError(f"{remote.shown}: it changes while it is fetched; try again when it stays as it is")
    actual = _record(directory).get("digest")
    if digest is not None and actual != digest:
        raise mismatch(
            remote.shown, str(actual), digest, f" (what came is in {directory}; remove that to fetch it again)"
        )
    return directory


def _persistently(call: Callable[[], T], pauses: Sequence[float]) -> T:
    """Raises the TransientError that comes after the last pause."""
    for pause in pauses:
        try:
            return call()
        except TransientError as error:
            logger.warning("%s; trying again in %g s", error, pause)
            threading.Event().wait(pause)
    return call()


def stem_of(uri: str) -> str:
    """The last part of a URI as the beginning of a file's name."""
    last = uri.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip(".-")[:100] or "model"


# --- what is kept -------------------------------------------------------------------------------------------------------
def _directory_of(remote: Remote, files: Sequence[RemoteFile]) -> Path:
    listing = [(file.name, file.size, file.version) for file in files]
    identity = hashlib.sha256(json.dumps([FORMAT, sorted(listing)]).encode()).hexdigest()
    return models_directory() / f"{_prefix(remote)}{identity[:16]}"


def _prefix(remote: Remote) -> str:
    """Of the directories of all versions."""
    return f"{stem_of(remote.shown)}-{hashlib.sha256(remote.uri.encode()).hexdigest()[:8]}-"


def _record(directory: Path) -> dict[str, Any]:
    """Empty where there is none, or it can't be read."""
    try:
        found = json.loads((directory / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_whole(directory: Path) -> bool:
    """Whether all files are there and as they were written (sizes and fingerprints; a few milliseconds)."""
    try:
        files = _record(directory)["files"]
        return all(describe(directory / name) == known for name, known in files.items())
    except (OSError, KeyError, AttributeError):
        return False


def _model_in(directory: Path) -> Path:
    (name,) = _record(directory)["files"]
    return directory / str(name)


def _kept_by_digest(digest: str, single: bool) -> Path | None:
    """One that has it. What only had it once is removed."""
    for record in sorted(models_directory().glob(f"*/{RECORD}")):
        directory = record.parent
        known = _record(directory)
        if known.get("digest") != digest or known.get("single") != single or not known.get("files"):
            continue
        if _has(directory, digest, single):
            return directory
        with _taking_turns(directory):
            if _has(directory, digest, single):  # another process has mended it while we waited
                return directory
            _discard(directory)
    return None


def _has(directory: Path, digest: str, single: bool) -> bool:
    """By its bytes, not by its record alone."""
    return is_whole(directory) and content_digest(_model_in(directory) if single else directory) == digest


def _discard(directory: Path) -> None:
    logger.warning("%s is damaged; it is fetched anew", directory)
    shutil.rmtree(directory, ignore_errors=True)


def _newest_copy(remote: Remote) -> Path | None:
    copies = [path.parent for path in models_directory().glob(f"{_prefix(remote)}*/{RECORD}")]
    whole = [directory for directory in copies if is_whole(directory)]
    return max(whole, key=lambda directory: (directory / RECORD).stat().st_mtime_ns, default=None)


def _taking_turns(directory: Path) -> AbstractContextManager[None]:
    return locked(_lock_of(directory))


def _lock_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")


def _partial_of(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.partial")


# --- what comes ---------------------------------------------------------------------------------------------------------
def _download_all(remote: Remote, files: Sequence[RemoteFile], directory: Path, pauses: Sequence[float]) -> None:
    """Under the directory's lock."""
    if directory.exists():
        _discard(directory)
    partial = _partial_of(directory)
    partial.mkdir(exist_ok=True)
    logger.warning("fetching %s: %d files, %.1f MB", remote.shown, len(files), sum(f.size for f in files) / 1e6)
    stop = threading.Event()
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        running = [threads.submit(_download, remote, file, partial, stop, pauses) for file in files]
        try:
            for future in running:
                future.result()
        except BaseException:
            stop.set()
            raise
    _finish(remote, files, partial, directory)
    _remove_leftovers(remote)


def _finish(remote: Remote, files: Sequence[RemoteFile], partial: Path, directory: Path) -> None:
    model = partial / files[0].name if remote.single else partial
    record = {
        "format": FORMAT,
        "uri": remote.shown,
        "single": remote.single,
        "digest": content_digest(model),
        "files": {file.name: describe(partial / file.name) for file in files},
    }
    with (partial / RECORD).open("w") as stream:
        json.dump(record, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    _sync_directory(partial)
    partial.chmod(0o755)
    partial.rename(directory)
    _sync_directory(directory.parent)
    logger.warning("fetched %s to %s, %s", remote.shown, directory, record["digest"])


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(remote: Remote) -> None:
    """Parts of versions that are no longer there, unless somebody is still at it."""
    for partial in models_directory().glob(f".{_prefix(remote)}*.partial"):
        final = partial.with_name(partial.name[1:].removesuffix(".partial"))
        with locked_if_free(_lock_of(final)) as free:
            if free:
                shutil.rmtree(partial, ignore_errors=True)


def _download(remote: Remote, file: RemoteFile, partial: Path, stop: threading.Event, pauses: Sequence[float]) -> None:
    """Until the file is complete. Raises TransientError when too many tries in a row brought next to nothing."""
    path, left = partial / file.name, iter(pauses)
    with path.open("ab") as out:
        if not file.version:  # what an earlier process left may be of another version
            out.truncate(0)
    while (have := path.stat().st_size) != file.size and not stop.is_set():
        try:
            _append(remote, file, path, have if have < file.size else 0, stop)
            trouble = TransientError(f"{file.name}: the connection ended early")
        except TransientError as error:
            trouble = error
        now = path.stat().st_size
        if now == file.size:
            break
        if now - have >= PROGRESS_BYTES:
            left = iter(pauses)
        pause = next(left, None)
        if pause is None:
            raise trouble
        logger.warning("%s; going on after %d of %d bytes in %g s", trouble, now, file.size, pause)
        stop.wait(pause)
    with path.open("ab") as out:
        os.fsync(out.fileno())


def _append(remote: Remote, file: RemoteFile, path: Path, have: int, stop: threading.Event) -> None:
    start, stream = remote.read(file, have)
    with path.open("r+b") as out:
        out.seek(start)
        out.truncate()
        for chunk in stream:
            if stop.is_set():
                return
            out.write(chunk)
            if out.tell() > file.size:
                out.truncate(0)
                raise ChangedError(f"{file.name} is longer than {file.size} bytes")
