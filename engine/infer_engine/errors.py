"""Every error that the engine raises, ordered by what the caller should do about it.

    InferEngineError
      RejectedError       the request or the configuration is wrong: change it, do not retry
        ConfigError       a field of a configuration: the message names it, what was given and what is allowed
        InvalidRequestError
        ModelLoadError    the model is missing, damaged or of a kind that we refuse
          DigestMismatchError   it is not the one that was asked for
      RetryableError      nothing is wrong with the request: try again after `retry_ms`
        QueueFullError
        EngineClosedError
      StaleHandle         a prefix that was matched is gone: match again

`code` is stable and goes over the wire; the message is for a person and says what to do.
"""

from __future__ import annotations


class InferEngineError(Exception):
    code: str = "internal"
    retry_ms: int | None = None

    def __init__(self, message: str, *, code: str | None = None, retry_ms: int | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if retry_ms is not None:
            self.retry_ms = retry_ms


class RejectedError(InferEngineError, ValueError):
    code = "invalid"


class ConfigError(RejectedError):
    code = "invalid_config"


class InvalidRequestError(RejectedError):
    code = "invalid_request"


class ModelLoadError(RejectedError):
    code = "model_load_failed"


class DigestMismatchError(ModelLoadError):
    code = "digest_mismatch"


class RetryableError(InferEngineError):
    code = "unavailable"
    retry_ms = 1000


class QueueFullError(RetryableError):
    code = "queue_full"
    retry_ms = 250


class EngineClosedError(RetryableError):
    code = "engine_closed"


class StaleHandle(InferEngineError):  # noqa: N818 - the name is part of the interface
    code = "stale_handle"
