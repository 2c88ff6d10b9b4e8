"""Nothing of its own; only that these tests are collected on a cluster alone, as everything here."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("INFERENGINE_TEST_CLUSTER") else ["test_*.py"]
