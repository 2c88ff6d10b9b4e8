"""docs/cluster.md: its commands in their order on a real cluster, and what they print compared with what the page says.

The page's blocks that begin with `$ ` are run by bash; `…` in their output stands for anything. The release and the quickstart's
first apply are made by other means, since here pods come by the software in their own way.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

pytestmark = pytest.mark.our_cluster

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs/cluster.md"
QUICKSTART = "manifests/examples/quickstart.yaml"
NAMESPACE = "models"
COMMAND_SECONDS = 270


class Step(NamedTuple):
    command: str
    output: list[str]
    """as the page has it"""

    @property
    def is_refused(self) -> bool:
        return bool(self.output) and self.output[-1].startswith("inferengine ")


def steps() -> Iterator[Step]:
    for block in re.findall(r"^```console\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *output = text.splitlines()
            yield Step(command, output)


def is_as_printed(output: str, page: list[str]) -> bool:
    """Columns may be wider or narrower."""
    parts = [re.escape(" ".join(line.split())).replace("…", ".*") for line in page]
    return re.fullmatch("\n".join(parts), "\n".join(" ".join(line.split()) for line in output.splitlines())) is not None


def test_the_guides_commands_do_what_it_says(release: Any, kubectl: Callable[..., str], tmp_path: Path) -> None:
    spec = release.real_spec(yaml.safe_load((ROOT / QUICKSTART).read_text())["spec"])
    kubeconfig = tmp_path / "kubeconfig"
    shutil.copy(os.environ["KUBECONFIG"], kubeconfig)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"KUBECONFIG": str(kubeconfig), "PATH": path}
    otherwise: dict[str, Callable[[], Any]] = {
        "helm install": release.install,
        f"kubectl create namespace {NAMESPACE}": lambda: None,  # it is there, by another name
        f"kubectl apply -f {QUICKSTART}": lambda: release.apply("quickstart", spec),
        "helm uninstall": lambda: None,  # at the end of this file's tests
    }
    done = []
    for step in steps():
        named = next((name for name in otherwise if step.command.startswith(name)), None)
        if named:
            otherwise.pop(named)()
            continue
        command = step.command.replace(f"={NAMESPACE}", f"={release.namespace}")
        ran = subprocess.run(
            ["bash", "-c", command],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        output = ran.stdout.replace(release.namespace, NAMESPACE).strip()
        done.append(f"$ {step.command}\n{output}")
        told = "\n".join(done)
        assert (ran.returncode != 0) == step.is_refused, told
        assert is_as_printed(output, step.output), f"{told}\n--- the page says:\n" + "\n".join(step.output)
    assert not otherwise, "no longer in the guide"
    print("\n".join(done))
