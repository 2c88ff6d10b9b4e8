"""These tests run where there is an accelerator; elsewhere none is collected, so none is reported as skipped."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
