"""`render(values)`: the chart's objects as Helm makes them, no cluster needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

HELM = Path(__file__).with_name("helm.py")

Manifest = dict[str, Any]


class HelmSaysNoError(Exception):
    """With what Helm said."""


def ask(**question: Any) -> Any:
    done = subprocess.run([sys.executable, HELM], input=json.dumps(question), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise HelmSaysNoError(answer["error"])
    return answer["answer"]


@pytest.fixture(scope="session")
def render() -> Callable[..., dict[str, str]]:
    """Text by template, e.g. `deployment.yaml`; without those that make nothing."""

    def call(values: Manifest | None = None, name: str = "inferengine", **options: str) -> dict[str, str]:
        made = ask(do="render", values=values or {}, name=name, namespace="inferengine-system", **options)
        return {path.partition("/templates/")[2]: text for path, text in made.items() if text.strip()}

    return call


@pytest.fixture(scope="session")
def objects(render: Callable[..., dict[str, str]]) -> Callable[..., list[Manifest]]:
    """What `helm install` makes: neither the notes nor the objects of `helm test`."""

    def call(values: Manifest | None = None, name: str = "inferengine") -> list[Manifest]:
        texts = render(values, name)
        return [
            yaml.safe_load(text)
            for path, text in texts.items()
            if path != "NOTES.txt" and not path.startswith("tests/")
        ]

    return call


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., str]:
    """The chart as it is published: the archive's path."""

    def call(**options: str) -> str:
        path: str = ask(do="package", directory=str(tmp_path), **options)
        return path

    return call


@pytest.fixture(scope="session")
def lint() -> Callable[..., list[str]]:
    def call(values: Manifest, **options: str) -> list[str]:
        found: list[str] = ask(do="lint", values=values, **options)
        return found

    return call


@pytest.fixture(scope="session")
def refusal(render: Callable[..., dict[str, str]]) -> Callable[..., str]:
    """What Helm says to values that it does not take."""

    def call(values: Manifest, **options: str) -> str:
        with pytest.raises(HelmSaysNoError) as raised:
            render(values, **options)
        return str(raised.value)

    return call
