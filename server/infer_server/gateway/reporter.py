"""Tells the operator, by the store, which document is in force here and what keeps this pod from serving all of it.

In flow the versions that were applied and news of what changed; out flows a report: at once with each change, and again before
the last one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from infer_server.contract.document import Version
from infer_server.contract.report import REPORT_SECONDS, make_report
from infer_server.contract.store import DocumentStore, StoreUnavailableError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class Reporter:
    """`run` it as a task. Its first report says that nothing is in force yet: it ends what an earlier process here has said."""

    def __init__(self, store: DocumentStore, pod: str, obstacles: Callable[[], list[str]]) -> None:
        self._store = store
        self._pod = pod
        self._obstacles = obstacles
        self._version: Version | None = None
        self._changed = asyncio.Event()

    def applied(self, version: Version) -> None:
        self._version = version
        self._changed.set()

    def changed(self) -> None:
        """Obstacles came or went."""
        self._changed.set()

    async def run(self) -> None:
        trouble = ""
        while True:
            self._changed.clear()
            try:
                await self._store.report(self._pod, make_report(self._version, self._obstacles()))
            except StoreUnavailableError as error:
                if str(error) != trouble:  # said once, not at each try
                    trouble = str(error)
                    log.warning("the operator cannot be told which tenants are served here: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            trouble = ""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._changed.wait()
