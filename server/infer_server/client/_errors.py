"""What a call can end with, ordered by what the caller should do about it.

    InferError
      Rejected                change the request, do not send it again as it is
        AuthenticationFailed  the key has no access to this endpoint
      Retryable               send it again, after `retry_ms`
        ConnectionLost        the connection, or the server behind it, went away
      Timeout                 the caller's own time limit passed; the request was cancelled

A plain InferError is a fault of the server's.
"""

from __future__ import annotations

from infer_server.protocol import Err


class InferError(Exception):
    """`code` is stable and short; `message` is for a person; `retry_ms` is set where a retry helps."""

    def __init__(self, code: str, message: str, retry_ms: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.retry_ms = code, message, retry_ms


class Rejected(InferError):  # noqa: N818 - reads as what happened
    pass


class AuthenticationFailed(Rejected):
    def __init__(self, endpoint: str) -> None:
        super().__init__(
            "authentication_failed",
            f"{endpoint} refuses this client's key: it belongs to another endpoint, or was revoked",
        )


class Retryable(InferError):  # noqa: N818
    pass


class ConnectionLost(Retryable):
    def __init__(self, message: str) -> None:
        super().__init__("connection_lost", message, retry_ms=100)


class Timeout(InferError, TimeoutError):  # noqa: N818
    def __init__(self, message: str) -> None:
        super().__init__("timeout", message)


def from_wire(err: Err) -> InferError:
    if err.retry_ms is not None:
        return Retryable(err.code, err.message, err.retry_ms)
    if err.code == "internal":
        return InferError(err.code, err.message)
    return Rejected(err.code, err.message)
