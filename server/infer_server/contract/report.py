"""What a pod says of itself in the store: which desired-state document is in force there, and what keeps it from serving.

Flows the other way than the document: pod -> store -> operator. Each report ends by itself after REPORT_TTL_SECONDS, so that what
stands there was true a moment ago.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from infer_server.contract.document import Version

REPORT_SECONDS = 5.0
"""between two reports of a pod that has nothing new to say"""
REPORT_TTL_SECONDS = 20
"""three reports may fail before a pod counts as silent"""
MAX_OBSTACLES = 3
OBSTACLE_CHARACTERS = 200


class PodReport(Struct, frozen=True, kw_only=True, rename="camel"):
    """Fields of a later version are ignored: a pod may be newer than the operator."""

    version: Version | None = None
    """of the document whose tenants it serves; None: it has seen none yet"""
    obstacles: tuple[str, ...] = ()
    """why it can't serve every tenant of that document, in words; at most MAX_OBSTACLES"""

    def follows(self, uid: str, revision: int) -> bool:
        """Whether that document is in force there, or a newer one of the same resource."""
        version = self.version
        return version is not None and version.uid == uid and version.revision >= revision and not self.obstacles


def make_report(version: Version | None, obstacles: list[str]) -> PodReport:
    return PodReport(version=version, obstacles=tuple(text[:OBSTACLE_CHARACTERS] for text in obstacles[:MAX_OBSTACLES]))


def encode_report(report: PodReport) -> bytes:
    return msgspec.json.encode(report)


def decode_report(data: bytes) -> PodReport | None:
    """None: not understood, so it tells nothing."""
    try:
        return msgspec.json.decode(data, type=PodReport)
    except msgspec.DecodeError:
        return None
