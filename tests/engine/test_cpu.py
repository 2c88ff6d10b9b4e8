"""Threads as the container allows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from infer_engine.cpu import SPIN_COUNT, cpu_quota, limit_spinning, limit_threads


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000\n", None), ("200000 100000\n", 2), ("150000 100000\n", 1), ("50000 100000\n", 1), ("what\n", None)],
)
def test_the_quota_is_whole_cpus(tmp_path: Path, content: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert cpu_quota(tmp_path) == expected


def test_no_file_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [("100000 100000", 1), ("800000 100000", 2), ("max 100000", 2)])
def test_threads_are_lowered_to_the_quota_and_never_raised(
    tmp_path: Path, two_threads: None, quota: str, expected: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    limit_threads(tmp_path)
    assert torch.get_num_threads() == expected


def test_what_the_environment_says_is_left_alone(
    tmp_path: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_threads(tmp_path)
    assert torch.get_num_threads() == 2


def test_spinning_is_limited_unless_the_environment_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == str(SPIN_COUNT)
