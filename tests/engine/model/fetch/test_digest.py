"""What a digest is over, compared with coreutils; and that nothing else is opened."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infer_engine.errors import DigestMismatchError, ModelLoadError
from infer_engine.model.fetch.digest import PATTERNS, content_digest
from infer_engine.model.source import inspect_checkpoint, resolve_model

PIPELINE = f"LC_ALL=C sha256sum {' '.join(PATTERNS)} 2>/dev/null | LC_ALL=C sort -k 2 | sha256sum"


@pytest.fixture
def directory(tmp_path: Path, model_files: dict[str, bytes]) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name, data in model_files.items():
        (directory / name).write_bytes(data)
    return directory


def test_coreutils_say_the_same(directory: Path) -> None:
    for name in ("Z.txt", "a-b.json", "a.json", "é.jinja", ".hidden.json", "README.md", "code.py"):
        (directory / name).write_text(name)
    (directory / "original").mkdir()
    (directory / "original" / "x.json").write_text("{}")
    (directory / "linked.txt").symlink_to(directory / "Z.txt")  # the hub's library keeps files so
    told = subprocess.run(["sh", "-c", PIPELINE], cwd=directory, capture_output=True, text=True, check=True).stdout
    assert content_digest(directory) == f"sha256:{told.split()[0]}"
    told = subprocess.check_output(["sha256sum", directory / "config.json"], text=True)
    assert content_digest(directory / "config.json") == f"sha256:{told.split()[0]}"


def test_every_change_of_a_file_that_is_read_changes_it(directory: Path) -> None:
    before = content_digest(directory)
    (directory / "notes.md").write_text("not read")
    assert content_digest(directory) == before
    (directory / "chat_template.jinja").write_text("{{ 'hello' }}")
    added = content_digest(directory)
    (directory / "chat_template.jinja").rename(directory / "chat_template.txt")
    assert len({before, added, content_digest(directory)}) == 3


def test_another_model_is_not_opened(directory: Path) -> None:
    digest = content_digest(directory)
    assert resolve_model(directory, digest) == directory
    weights = sorted(directory.glob("*.safetensors"))[0]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        DigestMismatchError, match=f"{directory}: its digest is sha256:.*, model.digest asks for {digest}"
    ):
        resolve_model(directory, digest)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "0" * 32, "0" * 64])
def test_what_is_no_digest(directory: Path, digest: str) -> None:
    with pytest.raises(ModelLoadError, match="must be sha256: and 64"):
        resolve_model(directory, digest)


def test_the_command_prints_it_and_keeps_to_it(directory: Path, fetches: Any, tmp_path: Path) -> None:
    code, digest, _ = fetches.run("--digest", str(directory))
    assert (code, digest) == (0, content_digest(directory))
    link = tmp_path / "link"
    link.symlink_to("/somewhere/else")
    code, printed, _ = fetches.run("--expect", digest, "--link", str(link), str(directory))
    assert (code, printed, os.readlink(link)) == (0, str(directory), str(directory))
    other = "sha256:" + hashlib.sha256().hexdigest()
    link.unlink()
    code, printed, said = fetches.run("--expect", other, "--link", str(link), str(directory))
    assert (code, printed, link.is_symlink()) == (3, "", False)
    assert said.splitlines()[-1].startswith(f"inferengine fetch: {directory}: its digest is {digest}")


def test_one_name_never_reads_as_two_files(directory: Path) -> None:
    """Without its template a model answers otherwise: that must not be the same digest."""
    (directory / "chat_template.jinja").write_text("{{ 'hello' }}")
    before = content_digest(directory)
    first = directory / "a.json"
    first.write_text("{}")
    both = content_digest(directory)
    template = directory / "chat_template.jinja"
    line = f"{hashlib.sha256(template.read_bytes()).hexdigest()}  {template.name}"
    template.unlink()
    first.rename(directory / f"a.json\n{line}")
    assert content_digest(directory) not in (before, both)


@pytest.mark.parametrize("name", [".added.safetensors", "a\n.safetensors", "a\\.safetensors"])
def test_weights_that_no_digest_is_over_are_not_read(directory: Path, name: str) -> None:
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)
    weights, *others = directory.glob("*.safetensors")
    weights.rename(directory / "weights.safetensors")
    for other in others:
        other.unlink()
    digest = content_digest(directory)
    (directory / name).write_bytes((directory / "weights.safetensors").read_bytes())
    assert content_digest(directory) == digest
    assert [file.name for file in inspect_checkpoint(directory).weights] == ["weights.safetensors"]


@pytest.mark.parametrize(
    "name", ['"sub/a.safetensors"', '"/etc/a.safetensors"', '"../a.safetensors"', '".a.safetensors"', '"a.bin"']
)
def test_an_index_leads_nowhere_else(directory: Path, name: str) -> None:
    (directory / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"x": {name}}}}}')
    with pytest.raises(ModelLoadError, match=r"must name \.safetensors files beside it"):
        inspect_checkpoint(directory)


def test_an_index_of_something_else(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"x": 5}}')
    with pytest.raises(ModelLoadError, match="not a readable index"):
        inspect_checkpoint(directory)
