"""What can go wrong with a quota call, by what the caller should do: retry later, change the request, or fix the set-up.

QuotaDenied        a limit says no. retry_ms: when it may say yes; None: never, as the request stands
QuotaUnavailable   the store does not answer, or not usefully. Nothing is admitted then; try again
DuplicateRequest   a request id was used for a second reservation: a mistake of the caller
"""

from __future__ import annotations

from infer_engine.errors import InferEngineError, RejectedError, RetryableError

_UNITS = {
    "requests_per_minute": "requests per minute",
    "tokens_per_minute": "tokens per minute",
    "concurrency": "concurrent requests",
    "tokens_per_day": "tokens per day (UTC)",
    "tokens_per_month": "tokens per month (UTC)",
}


class QuotaDenied(InferEngineError):  # noqa: N818 - an outcome that callers handle, more than a failure
    """`reason`: requests_per_minute, tokens_per_minute, concurrency, tokens_per_day, tokens_per_month, too_large or
    unknown_tenant; `code` is `quota_<reason>`. The rule for a client: wait retry_ms, or give up where it is None."""

    def __init__(self, message: str, *, reason: str, retry_ms: int | None) -> None:
        super().__init__(message, code=f"quota_{reason}", retry_ms=retry_ms)
        self.reason = reason
        self.message = message


class QuotaUnavailable(RetryableError):  # noqa: N818 - named for the state of the store
    code = "quota_unavailable"
    retry_ms = 1000


class DuplicateRequest(RejectedError):  # noqa: N818 - named for the request
    code = "duplicate_request"


def denial(tenant: str, reason: str, limit_name: str, limit: int, retry_ms: int | None, estimate: int) -> QuotaDenied:
    """The error for a denial, with a message that names the limit, its value and the way out."""
    if reason == "unknown_tenant":
        message = (
            f"tenant {tenant} has no limits in the quota store, so nothing is admitted: check the tenant's name, "
            "or wait until the deployment that declares it is applied"
        )
    elif reason == "too_large":
        message = (
            f"the request reserves {estimate} tokens (prompt + max_tokens), more than {limit_name} {limit} of tenant {tenant} "
            "ever admits: shorten the prompt, lower max_tokens, or have the limit raised"
        )
    else:
        message = (
            f"tenant {tenant} is at its limit of {limit} {_UNITS[reason]}: {_advice(reason, retry_ms or 0)}, "
            f"or have {limit_name} raised"
        )
    return QuotaDenied(message, reason=reason, retry_ms=retry_ms)


def _advice(reason: str, retry_ms: int) -> str:
    if reason == "concurrency":
        return "retry when one of its requests has ended"
    seconds = retry_ms / 1000
    return f"retry in {seconds:.3g} s" if seconds < 120 else f"retry in {seconds / 3600:.1f} h"
