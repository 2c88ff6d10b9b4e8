"""images/build.sh, with `echo` for a builder: it says what it would build. That it builds is shown by the test cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

CLONE = Path(__file__).parents[2]
CHART = CLONE / "charts/inferengine"


def build(*images: str, **environment: str) -> list[str]:
    """The builder's command lines, each followed by the image's name."""
    done = subprocess.run(
        [CLONE / "images/build.sh", *images],
        env={"PATH": os.environ["PATH"], "BUILDER": "echo", **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()


def test_its_names_are_those_that_the_chart_assumes() -> None:
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert build()[1::2] == [f"{values[name]['repository']}:{version}" for name in ("image", "engineImage")]


def test_names_to_push_begin_with_the_registry() -> None:
    (_, name) = build("operator", REGISTRY="registry.example.com/team")
    assert name.startswith("registry.example.com/team/inferengine-operator:")


def test_the_image_for_gpus_differs_in_its_tag_and_its_torch() -> None:
    plain, plain_name, cuda, cuda_name = build("engine", "engine-cuda")
    assert cuda_name == f"{plain_name}-cuda"
    assert "--target engine" in plain
    assert "--target engine" in cuda
    assert "TORCH=cuda" in cuda
    assert "TORCH" not in plain


def test_an_unknown_image_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(RuntimeError, match="no image gateway: there are operator, engine, engine-cuda"):
        build("gateway")


def test_without_a_builder_it_says_what_is_needed(tmp_path: Path) -> None:
    for program in ("sh", "dirname", "sed"):
        os.symlink(f"/bin/{program}", tmp_path / program)
    with pytest.raises(RuntimeError, match="docker, podman or buildah is needed"):
        build(PATH=str(tmp_path), BUILDER="")
