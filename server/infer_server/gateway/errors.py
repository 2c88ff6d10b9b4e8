"""How a request ends that isn't served: one exception, whose code, message and retry time go to the client as ERR."""

from __future__ import annotations

from typing import Literal

from infer_server.protocol import Err


class RefusedError(Exception):
    """`retry_ms` is given exactly where the same request may succeed later."""

    def __init__(self, code: str, message: str, retry_ms: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_ms = retry_ms

    def to_err(self) -> Err:
        return Err(code=self.code, message=self.message, retry_ms=self.retry_ms)


def engine_unavailable() -> RefusedError:
    return RefusedError("engine_unavailable", "the model is being loaded again; send the request once more", 1000)


def draining() -> RefusedError:
    return RefusedError("draining", "this server is shutting down; send the request once more, to another", 1000)


def overloaded(limit: str) -> RefusedError:
    return RefusedError("overloaded", f"this server holds at most {limit}; retry", 500)


def tenant_gone(how: Literal["removed", "suspended"]) -> RefusedError:
    return RefusedError(f"tenant_{how}", f"this tenant was {how}; ask whoever runs the service")
