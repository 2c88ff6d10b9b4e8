"""http:// against a real server that cuts, stalls, changes, refuses and redirects: what arrives, and what is asked for again."""

from __future__ import annotations

import logging
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infer_engine.config import EngineConfig
from infer_engine.errors import DigestMismatchError, ModelLoadError
from infer_engine.model.fetch import download, web
from infer_engine.model.fetch.digest import content_digest
from infer_engine.model.loader import load_model
from infer_engine.model.source import resolve_model

QUICKLY = (0.01, 0.02)
MB = 1 << 20


def fetch(url: str, digest: str | None = None, token: str | None = None) -> Path:
    return download.fetch(web.Web(url, token), digest, QUICKLY)


@pytest.fixture
def file(website: Any, content: Callable[[int], bytes], cache: Path) -> bytes:
    """Served as /m.gguf."""
    website.files["/m.gguf"] = content(4 * MB)
    return bytes(website.files["/m.gguf"])


def test_a_file_is_fetched_once(website: Any, file: bytes, cache: Path) -> None:
    path = fetch(f"{website.url}/m.gguf")
    assert (path.name, path.read_bytes()) == ("m.gguf", file)
    assert path.is_relative_to(cache)
    assert fetch(f"{website.url}/m.gguf") == path
    assert website.fetched("/m.gguf") == [None]
    assert [entry.name for entry in cache.iterdir() if entry.name.startswith(".")] == []  # nothing half made is left


def test_a_download_goes_on_where_it_broke_off(website: Any, file: bytes) -> None:
    website.cuts = [MB, MB]
    assert fetch(f"{website.url}/m.gguf").read_bytes() == file
    assert website.fetched("/m.gguf") == [None, f"bytes={MB}-", f"bytes={2 * MB}-"]


def test_a_server_without_ranges_begins_again(website: Any, file: bytes) -> None:
    website.cuts = [MB]
    website.has_ranges = False
    assert fetch(f"{website.url}/m.gguf").read_bytes() == file


def test_a_server_that_skips_leaves_no_hole(website: Any, file: bytes, cache: Path) -> None:
    website.cuts = [MB]
    website.skips = MB
    with pytest.raises(ModelLoadError, match=f"the server sends from byte {2 * MB} where {MB} was asked for"):
        fetch(f"{website.url}/m.gguf")
    website.skips = 0
    assert fetch(f"{website.url}/m.gguf").read_bytes() == file


def test_a_killed_process_s_work_is_not_lost(website: Any, file: bytes, fetches: Any) -> None:
    website.stall_at = MB
    process = fetches.start("--digest", f"{website.url}/m.gguf")
    assert website.stalled.wait(60)
    _wait_for_part(fetches, MB)
    fetches.kill(process)
    assert process.returncode == -signal.SIGKILL
    website.stall_at = None
    website.going_on.set()
    code, printed, said = fetches.run("--digest", f"{website.url}/m.gguf")
    assert (code, printed.startswith("sha256:")) == (0, True), said
    assert website.fetched("/m.gguf") == [None, f"bytes={MB}-"]
    assert fetch(f"{website.url}/m.gguf").read_bytes() == file


def _wait_for_part(fetches: Any, size: int) -> None:
    cache = Path(fetches.environment["XDG_CACHE_HOME"]) / "inferengine/models"
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size >= size for part in cache.glob(".*.partial/m.gguf")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_changed_meanwhile_is_not_mixed(
    website: Any, file: bytes, content: Callable[[int], bytes], fetches: Any, cache: Path
) -> None:
    website.stall_at = MB
    process = fetches.start("--digest", f"{website.url}/m.gguf")
    assert website.stalled.wait(60)
    _wait_for_part(fetches, MB)
    fetches.kill(process)
    website.stall_at = None
    website.files["/m.gguf"] = content(3 * MB)
    assert fetch(f"{website.url}/m.gguf").read_bytes() == content(3 * MB)
    assert list(cache.glob(".*.partial")) == []  # what had come of the old one is gone


def test_a_change_between_the_look_and_the_fetch(
    website: Any, file: bytes, content: Callable[[int], bytes], cache: Path
) -> None:
    remote = web.Web(f"{website.url}/m.gguf", None)
    (listed,) = remote.files()
    for new in (file[::-1], content(2 * MB)):  # of the same size, and of another
        website.files["/m.gguf"] = new
        for start in (0, MB):
            with pytest.raises(download.ChangedError):
                remote.read(listed, start)
        assert fetch(f"{website.url}/m.gguf").read_bytes() == new


def test_a_new_version_is_fetched_beside_the_old_one(
    website: Any, file: bytes, content: Callable[[int], bytes]
) -> None:
    old = fetch(f"{website.url}/m.gguf")
    website.files["/m.gguf"] = content(2 * MB)
    new = fetch(f"{website.url}/m.gguf")
    assert old.read_bytes() == file
    assert new.read_bytes() == content(2 * MB)


def test_without_the_server_the_copy_serves(website: Any, file: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = fetch(f"{website.url}/m.gguf")
    website.errors = [503] * 10
    with caplog.at_level(logging.WARNING):
        assert fetch(f"{website.url}/m.gguf") == path
    assert "is used" in caplog.text
    website.errors = [503] * 10
    with pytest.raises(ModelLoadError, match=r"can't be fetched.*503"):
        fetch(f"{website.url}/other.gguf")


def test_what_passes_is_tried_again(website: Any, file: bytes) -> None:
    website.errors = [503, 429]
    assert fetch(f"{website.url}/m.gguf").read_bytes() == file


def test_two_processes_fetch_once(website: Any, file: bytes, fetches: Any) -> None:
    website.stall_at = MB
    first, second = (fetches.start("--digest", f"{website.url}/m.gguf") for _ in range(2))
    deadline = time.monotonic() + 60
    while not _waits_for_a_lock(first.pid, second.pid) and len(website.fetched("/m.gguf")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    website.going_on.set()
    answers = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert answers[0] == answers[1]
    assert website.fetched("/m.gguf") == [None]


def _waits_for_a_lock(*pids: int) -> bool:
    blocked = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "-> FLOCK" in line]
    return any(int(fields[5]) in pids for fields in blocked)


def test_a_gguf_file_is_converted_once(website: Any, tiny_gguf: Path, cache: Path) -> None:
    website.files["/tiny.gguf"] = tiny_gguf.read_bytes()
    directory = resolve_model(f"{website.url}/tiny.gguf")
    assert load_model(directory, EngineConfig(device="cpu")).tokenizer is not None
    assert resolve_model(f"{website.url}/tiny.gguf") == directory
    digest = content_digest(tiny_gguf)
    pinned = resolve_model(f"{website.url}/tiny.gguf", digest)
    assert resolve_model(f"{website.url}/tiny.gguf", digest) == pinned != directory  # made of this very content alone
    assert website.fetched("/tiny.gguf") == [None]


# --- digests -------------------------------------------------------------------------------------------------------------
def test_a_digest_is_kept_and_found_without_the_server(website: Any, file: bytes, tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(file)
    digest = content_digest(tmp_path / "same")
    path = fetch(f"{website.url}/m.gguf", digest)
    before = len(website.requests)
    assert fetch(f"{website.url}/m.gguf", digest) == path
    assert fetch(f"{website.url}/elsewhere.gguf", digest) == path
    assert len(website.requests) == before


def test_another_content_is_refused_and_not_fetched_again(website: Any, file: bytes) -> None:
    wanted = "sha256:" + "0" * 64
    for _ in range(2):
        with pytest.raises(DigestMismatchError, match=f"its digest is sha256:.* asks for {wanted}"):
            fetch(f"{website.url}/m.gguf", wanted)
    assert website.fetched("/m.gguf") == [None]


def test_a_damaged_byte_in_the_copy_is_seen(website: Any, file: bytes, tmp_path: Path) -> None:
    path = fetch(f"{website.url}/m.gguf")
    digest = content_digest(path)
    damaged = bytearray(file)
    damaged[2 * MB + 30_000] ^= 1  # between the samples of a fingerprint
    path.write_bytes(damaged)
    assert fetch(f"{website.url}/m.gguf").read_bytes() == damaged  # without a digest nobody reads it all
    assert fetch(f"{website.url}/m.gguf", digest).read_bytes() == file
    assert website.fetched("/m.gguf") == [None, None]


def test_a_truncated_copy_is_fetched_anew(website: Any, file: bytes) -> None:
    path = fetch(f"{website.url}/m.gguf")
    path.write_bytes(file[: 2 * MB])
    assert fetch(f"{website.url}/m.gguf").read_bytes() == file


# --- directories ---------------------------------------------------------------------------------------------------------
def test_a_directory_is_fetched_by_its_files_usual_names(
    website: Any, model_files: dict[str, bytes], cache: Path, tmp_path: Path
) -> None:
    assert len([name for name in model_files if name.endswith(".safetensors")]) > 1
    website.files |= {f"/models/tiny/{name}": data for name, data in model_files.items()}
    directory = fetch(f"{website.url}/models/tiny")
    assert {path.name for path in directory.iterdir()} == model_files.keys() | {download.RECORD}
    loaded = load_model(directory, EngineConfig(device="cpu"))
    assert loaded.model.info.num_layers == 2
    assert loaded.tokenizer is not None
    for name, data in model_files.items():
        (tmp_path / name).write_bytes(data)
    assert content_digest(directory) == content_digest(tmp_path)
    assert resolve_model(f"{website.url}/models/tiny/", content_digest(tmp_path)) == directory


def test_an_interrupted_directory_keeps_its_finished_files(
    website: Any, model_files: dict[str, bytes], cache: Path
) -> None:
    website.files |= {f"/tiny/{name}": data for name, data in model_files.items()}
    shards = sorted(name for name in model_files if name.endswith(".safetensors"))
    website.cuts = [len(model_files[shards[0]]) - 100] * 20
    with pytest.raises(ModelLoadError, match="can't be fetched"):
        download.fetch(web.Web(f"{website.url}/tiny", None), None, ())
    assert [path for path in cache.iterdir() if not path.name.startswith(".") and path.is_dir()] == []
    website.cuts = []
    before = len(website.fetched("/tiny/config.json"))
    assert (fetch(f"{website.url}/tiny") / shards[0]).read_bytes() == model_files[shards[0]]
    assert len(website.fetched("/tiny/config.json")) == before


def test_an_index_that_breaks_off_is_asked_for_again(website: Any, model_files: dict[str, bytes], cache: Path) -> None:
    website.files |= {f"/tiny/{name}": data for name, data in model_files.items()}
    index = "/tiny/model.safetensors.index.json"
    website.files[index] = b" " * (2 * MB) + website.files[index]  # longer than all else: this one is cut
    website.cuts = [MB]
    assert (fetch(f"{website.url}/tiny") / "config.json").read_bytes() == model_files["config.json"]
    assert website.fetched(index)[:2] == [None, None]


@pytest.mark.parametrize(
    "name", ["../../evil.safetensors", "/etc/passwd", "sub/model.safetensors", ".hidden.safetensors"]
)
def test_an_index_names_no_files_elsewhere(website: Any, cache: Path, name: str) -> None:
    website.files |= {
        "/m/config.json": b"{}",
        "/m/model.safetensors.index.json": b'{"weight_map": {"a": "%s"}}' % name.encode(),
    }
    with pytest.raises(ModelLoadError, match=r"must name \.safetensors files"):
        fetch(f"{website.url}/m")


# --- what is refused -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nothing.gguf", "no such file"),
        ("/nothing", "nothing/config.json: no such file"),
        ("/model.tar.gz", "archives are not unpacked"),
        ("/directory?version=2", "must be the URL of a .gguf file"),
    ],
)
def test_what_is_no_model(website: Any, cache: Path, path: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        fetch(f"{website.url}{path}")


@pytest.mark.parametrize("url", ["https://h:99999/m.gguf", "https://h:x/m.gguf", "https://[h/m.gguf"])
def test_a_host_or_port_that_is_none(url: str) -> None:
    with pytest.raises(ModelLoadError, match="no usable host and port"):
        web.Web(url, None)


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(ModelLoadError, match="without user and password") as caught:
        fetch("https://user:hunter2@host/m.gguf")
    assert "hunter2" not in str(caught.value)


def test_a_signature_is_not_repeated(website: Any, file: bytes) -> None:
    path = fetch(f"{website.url}/m.gguf?signature=hunter2")
    assert "hunter2" not in (path.parent / download.RECORD).read_text()
    website.errors = [400]
    with pytest.raises(ModelLoadError, match="answers 400") as caught:
        fetch(f"{website.url}/m.gguf?signature=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Content-Encoding": "gzip"}, "encodes the file"),
        ({"Content-Length": "unknown", "Transfer-Encoding": "chunked"}, "how long the file is"),
    ],
)
def test_servers_that_can_not_be_followed(website: Any, file: bytes, headers: dict[str, str], message: str) -> None:
    website.has_ranges = False
    website.headers = headers
    with pytest.raises(ModelLoadError, match=message):
        fetch(f"{website.url}/m.gguf")


def test_a_cache_that_can_not_be_written(website: Any, file: bytes, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ModelLoadError, match="set XDG_CACHE_HOME"):
        fetch(f"{website.url}/m.gguf")


# --- redirects and tokens ------------------------------------------------------------------------------------------------
def test_a_redirect_is_followed_and_the_token_stays_behind(
    website: Any, other_website: Any, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    website.token = "open sesame"
    website.redirects["/here.gguf"] = (302, "/m.gguf")
    assert fetch(f"{website.url}/here.gguf", token="open sesame\n").read_bytes() == file
    assert {request.authorization for request in website.requests} == {"Bearer open sesame"}
    other_website.redirects["/there.gguf"] = (307, f"{website.url}/m.gguf")
    with pytest.raises(ModelLoadError, match=r"401.*INFERENGINE_HTTP_TOKEN"):
        fetch(f"{other_website.url}/there.gguf", token="open sesame")
    assert other_website.requests[-1].authorization == "Bearer open sesame"
    assert website.requests[-1].authorization is None


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/m.gguf", "data:text/plain,x"])
def test_a_redirect_stays_on_the_web(website: Any, cache: Path, location: str) -> None:
    website.redirects["/m.gguf"] = (302, location)
    with pytest.raises(ModelLoadError, match=r"answers 302.*followed on http and https"):
        fetch(f"{website.url}/m.gguf")


@pytest.mark.parametrize(("target", "followed"), [("https://other/m", True), ("http://host/m", False)])
def test_a_redirect_never_leaves_https(target: str, followed: bool) -> None:
    request = urllib.request.Request("https://host/m")
    answer = web._Redirects().redirect_request(request, None, 302, "Found", {}, target)  # type: ignore[arg-type]
    assert (answer is not None) == followed


def test_the_token_comes_from_the_environment(website: Any, file: bytes, fetches: Any) -> None:
    website.token = "open sesame"
    code, printed, said = fetches.run("--digest", f"{website.url}/m.gguf", INFERENGINE_HTTP_TOKEN="open sesame")
    assert (code, printed.startswith("sha256:")) == (0, True), said
    assert "sesame" not in said
    code, _, said = fetches.run("--digest", f"{website.url}/m.gguf")
    assert code == 1
    assert said.splitlines()[-1].startswith(f"inferengine fetch: {website.url}/m.gguf: the server answers 401")
