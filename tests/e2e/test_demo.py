"""The tour that the README shows, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_tour_keeps_every_promise() -> None:
    tour = subprocess.run(
        [sys.executable, "-m", "infer_server.commands", "demo"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert tour.returncode == 0, tour.stdout + tour.stderr
    assert "✗" not in tour.stdout
    summary = tour.stdout.split("What was seen", 1)[1].strip().splitlines()
    assert len(summary) >= 10, summary
