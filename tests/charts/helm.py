"""Helm in a process of its own: a question as JSON in, the answer as JSON out.

Not in the tests' process: Helm is a Go program as a library, whose threads and signal handlers stay until the process ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python as helm

CHARTS = Path(__file__).parents[2] / "charts"
OURS = "inferengine"
READY_SECONDS = 120


def lint(values: dict[str, Any], chart: str = OURS) -> list[str]:
    """What is wrong, a line each; hints are left out."""
    report = helm.lint(CHARTS / chart, values, strict=True)
    warning = 2
    return [*report["errors"], *(found["error"] for found in report["messages"] if found["severity"] >= warning)]


def package(directory: str, chart: str = OURS) -> str:
    """The archive's path."""
    return helm.package(CHARTS / chart, destination=directory)


def render(
    values: dict[str, Any], name: str, namespace: str, path: str | None = None, chart: str = OURS
) -> dict[str, str]:
    """By template; of a chart in this clone, or of an archive."""
    with helm.Chart.load(path or CHARTS / chart) as loaded:
        loaded.validate_schema(values)
        return loaded.render(values, name=name, namespace=namespace)


def install(values: dict[str, Any], name: str, namespace: str, chart: str = OURS) -> str:
    """On the cluster that KUBECONFIG names; until what was made is ready. The manifest."""
    with helm.Config(namespace=namespace) as config:
        done = config.install(CHARTS / chart, name, values, wait="watcher", timeout=READY_SECONDS)
    return str(done["manifest"])


def upgrade(values: dict[str, Any], name: str, namespace: str, chart: str = OURS) -> str:
    """Likewise, of a release that is there."""
    with helm.Config(namespace=namespace) as config:
        done = config.upgrade(CHARTS / chart, name, values, wait="watcher", timeout=READY_SECONDS)
    return str(done["manifest"])


def rollback(name: str, namespace: str) -> None:
    """To what it was before its last upgrade."""
    with helm.Config(namespace=namespace) as config:
        config.rollback(name, wait="watcher", timeout=READY_SECONDS)


def uninstall(name: str, namespace: str) -> None:
    with helm.Config(namespace=namespace) as config:
        config.uninstall(name, ignore_not_found=True, wait="watcher", timeout=READY_SECONDS)


def test(name: str, namespace: str, timeout: int) -> str:
    """What the test's pod wrote."""
    with helm.Config(namespace=namespace) as config:
        return str(config.test(name, timeout=timeout, logs=True)["logs"])


COMMANDS: dict[str, Callable[..., Any]] = {
    "lint": lint,
    "package": package,
    "render": render,
    "install": install,
    "upgrade": upgrade,
    "rollback": rollback,
    "uninstall": uninstall,
    "test": test,
}


def main() -> None:
    asked = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"answer": COMMANDS[asked.pop("do")](**asked)}
    except helm.HelmError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
