"""`infer_engine` exports what it says, and looking at it costs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import infer_engine


def test_every_public_name_is_there() -> None:
    for name in infer_engine.__all__:
        assert getattr(infer_engine, name) is not None
    assert sorted(infer_engine.__all__) == dir(infer_engine)


def test_type_checkers_see_the_same_names() -> None:
    source = Path(infer_engine.__file__).read_text()
    checked = {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("infer_engine.")
        for alias in node.names
    }
    assert checked == set(infer_engine.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        infer_engine.Engine  # noqa: B018


def test_configuration_and_errors_need_no_torch() -> None:
    code = (
        "import sys; from infer_engine import EngineConfig, SamplingParams, QueueFullError, EngineStats, RadixCache;"
        "EngineConfig(); SamplingParams(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
