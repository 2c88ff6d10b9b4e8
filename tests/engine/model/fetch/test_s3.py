"""s3:// against a real server of that protocol, with a relay that cuts and stalls in front of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infer_engine.errors import ModelLoadError
from infer_engine.model.fetch import download, s3
from infer_engine.model.fetch.digest import content_digest
from infer_engine.model.source import inspect_checkpoint

MB = 1 << 20


def fetch(store: Any, uri: str, digest: str | None = None) -> Path:
    return download.fetch(s3.Bucket.of(uri, store.environment), digest, (0.01, 0.02))


@pytest.fixture
def directory(store: Any, model_files: dict[str, bytes], cache: Path) -> str:
    """The prefix of a model, with what else may lie about in a bucket."""
    for name, data in model_files.items():
        store.put(f"llama/8b/{name}", data)
    store.put("llama/8b/original/params.json", b"{}")
    store.put("llama/8b/pytorch_model.bin", b"pickle")
    store.put("llama/8b-other/config.json", b"{}")
    return "s3://models/llama/8b"


def test_a_directory_s_own_files(store: Any, directory: str, model_files: dict[str, bytes], tmp_path: Path) -> None:
    path = fetch(store, directory)
    inspect_checkpoint(path)
    found = {file.name: file.read_bytes() for file in path.iterdir() if file.name != download.RECORD}
    assert found == model_files
    for name, data in model_files.items():
        (tmp_path / name).write_bytes(data)
    assert content_digest(path) == content_digest(tmp_path)
    before = len(store.relay.heads)
    assert fetch(store, f"{directory}/") == path
    assert fetch(store, directory, content_digest(tmp_path)) == path
    assert not any("safetensors" in head.splitlines()[0] for head in store.relay.heads[before:])


def test_a_download_goes_on_where_it_broke_off(store: Any, content: Callable[[int], bytes], cache: Path) -> None:
    store.put("m.gguf", content(8 * MB))
    store.relay.cuts = [5 * MB] * 4  # the library goes on by itself twice
    assert fetch(store, "s3://models/m.gguf").read_bytes() == content(8 * MB)
    assert any(wanted is not None and not wanted.startswith("bytes=0-") for wanted in store.relay.ranges("m.gguf"))


def test_a_killed_process_s_work_is_not_lost(
    store: Any, content: Callable[[int], bytes], fetches: Any, cache: Path
) -> None:
    store.put("m.gguf", content(8 * MB))
    store.relay.stall_at = 5 * MB
    process = fetches.start("--digest", "s3://models/m.gguf", **store.environment)
    assert store.relay.stalled.wait(60)
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size >= 4 * MB for part in cache.glob(".*.partial/m.gguf")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    fetches.kill(process)
    assert process.returncode == -signal.SIGKILL
    store.relay.stall_at = None
    (part,) = cache.glob(".*.partial/m.gguf")
    have = part.stat().st_size
    assert fetch(store, "s3://models/m.gguf").read_bytes() == content(8 * MB)
    assert store.relay.ranges("m.gguf")[-1] == f"bytes={have}-"


def test_a_change_between_the_list_and_the_fetch(store: Any, content: Callable[[int], bytes], cache: Path) -> None:
    store.put("m.gguf", content(MB))
    bucket = s3.Bucket.of("s3://models/m.gguf", store.environment)
    (listed,) = bucket.files()
    store.put("m.gguf", content(2 * MB))
    with pytest.raises(download.ChangedError):
        bucket.read(listed, 0)
    assert fetch(store, "s3://models/m.gguf").read_bytes() == content(2 * MB)


def test_without_the_store_the_copy_serves(store: Any, content: Callable[[int], bytes], cache: Path) -> None:
    store.put("m.gguf", content(MB))
    path = fetch(store, "s3://models/m.gguf")
    store.environment["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
    assert fetch(store, "s3://models/m.gguf") == path
    with pytest.raises(ModelLoadError, match="can't be fetched"):
        fetch(store, "s3://models/other.gguf")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://models/nothing.gguf", "no such bucket or object"),
        ("s3://models/nothing", "no config.json below it"),
        ("s3://other/nothing", "no such bucket or object"),
        ("s3://models", "must be s3://BUCKET/PREFIX"),
        ("s3://models//", "must be s3://BUCKET/PREFIX"),
        ("s3://Models/m", "must be s3://BUCKET/PREFIX"),
    ],
)
def test_what_is_not_there(store: Any, cache: Path, uri: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        fetch(store, uri)
    assert "\n" not in str(caught.value)


# --- credentials ---------------------------------------------------------------------------------------------------------
def test_a_file_holds_everything(store: Any, content: Callable[[int], bytes], fetches: Any, tmp_path: Path) -> None:
    """As the operator mounts it: one file for both variables."""
    store.put("m.gguf", content(MB))
    file = tmp_path / "credentials"
    lines = ["[default]", "aws_access_key_id = reader", "aws_secret_access_key = s%cret", "region = eu-central-1"]
    file.write_text("\n".join([*lines, f"endpoint_url = {store.relay.url}"]))
    names = ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")
    code, _, said = fetches.run("--digest", "s3://models/m.gguf", **dict.fromkeys(names, str(file)))
    assert code == 0, said
    assert "Credential=reader/" in store.relay.heads[-1]
    assert "/eu-central-1/s3/" in store.relay.heads[-1]
    assert "s%cret" not in said


def test_variables_come_before_files_and_profiles_are_heard(tmp_path: Path) -> None:
    credentials, config = tmp_path / "credentials", tmp_path / "config"
    credentials.write_text(
        "[default]\naws_access_key_id = a\n[work]\naws_access_key_id = w\naws_secret_access_key = s\n"
    )
    config.write_text("[default]\nregion = one\n[profile work]\nregion = two\n")
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(credentials), "AWS_CONFIG_FILE": str(config)}
    assert s3.settings(files) == {"access_key_id": "a", "region": "one"}
    work = files | {"AWS_PROFILE": "work"}
    assert s3.settings(work) == {"access_key_id": "w", "secret_access_key": "s", "region": "two"}
    given = {"AWS_ACCESS_KEY_ID": "v", "AWS_REGION": "three", "AWS_ENDPOINT_URL": "https://minio"}
    assert s3.settings(work | given) == {"access_key_id": "v", "region": "three", "endpoint": "https://minio"}


def test_a_file_that_is_no_credentials_file(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("aws_secret_access_key = hunter2\n")
    with pytest.raises(ModelLoadError, match="can't be read as a file of AWS credentials") as caught:
        s3.settings({"AWS_SHARED_CREDENTIALS_FILE": str(file), "AWS_CONFIG_FILE": str(tmp_path / "none")})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_CA_BUNDLE": "/no/such/file"}, "AWS_CA_BUNDLE: /no/such/file can't be read"),
        ({"AWS_CA_BUNDLE": "/dev/null"}, "S3 can't be used: No certificates found"),
        ({"AWS_ENDPOINT_URL": "minio:9000"}, r"AWS_ENDPOINT_URL \(endpoint_url\): got 'minio:9000'; must be https://"),
        ({"AWS_REGION": "eu west"}, r"AWS_DEFAULT_REGION \(region\): got 'eu west'; must be the code"),
    ],
)
def test_settings_that_can_not_be_right(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        s3.Bucket.of("s3://models/m.gguf", environment)


def test_nobody_knows_any_credentials(fetches: Any, cache: Path) -> None:
    """The machine's own role is asked for last, here where nothing listens."""
    role = {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:1", "HOME": str(cache)}
    code, _, said = fetches.run("s3://models/m.gguf", **role)
    assert code == 1
    assert said.splitlines()[-1].startswith(
        "inferengine fetch: s3://models/m.gguf: no credentials; set AWS_ACCESS_KEY_ID"
    )
