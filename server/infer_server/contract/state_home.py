"""Where deployments on this machine keep their state: the operator writes there, and clients look for their credentials."""

from __future__ import annotations

import os
from pathlib import Path


def state_home() -> Path:
    """One folder for each deployment is in it (XDG base directory specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "inferengine"
