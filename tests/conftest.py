"""Test counts: `ci` on every run, `soak` (INFERENGINE_TEST_PROFILE=soak) the full ones. The code is the same."""

from __future__ import annotations

import os

import hypothesis
import pytest

PROFILE = os.environ.get("INFERENGINE_TEST_PROFILE", "ci")

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(PROFILE)


@pytest.fixture(scope="session")
def is_soak() -> bool:
    """Whether the full counts are wanted."""
    return PROFILE == "soak"
