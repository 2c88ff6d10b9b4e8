"""Quota over all pods: `reserve` before a request, `renew` while it runs, `settle` after it."""

from infer_server.contract.document import QuotaLimits
from infer_server.quota.embedded import EmbeddedStore, run_embedded
from infer_server.quota.errors import DuplicateRequest, QuotaDenied, QuotaUnavailable
from infer_server.quota.reservation import Bucket, Renewal, Reservation, Settlement, Usage, Use, Window
from infer_server.quota.store import QuotaStore

__all__ = [
    "Bucket",
    "DuplicateRequest",
    "EmbeddedStore",
    "QuotaDenied",
    "QuotaLimits",
    "QuotaStore",
    "QuotaUnavailable",
    "Renewal",
    "Reservation",
    "Settlement",
    "Usage",
    "Use",
    "Window",
    "run_embedded",
]
