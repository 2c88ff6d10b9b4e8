"""The engine's public surface, and only that. Names are loaded when first used: reading a configuration imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infer_engine.cache import RadixCache, RadixKey
    from infer_engine.config import EngineConfig, Share
    from infer_engine.engine import InferenceEngine
    from infer_engine.errors import (
        ConfigError,
        EngineClosedError,
        InferEngineError,
        InvalidRequestError,
        ModelLoadError,
        QueueFullError,
        RejectedError,
        RetryableError,
        StaleHandle,
    )
    from infer_engine.model.protocol import (
        CacheAwareModel,
        ForwardBatch,
        ModelInfo,
        RaggedModel,
        SequenceCache,
    )
    from infer_engine.request import (
        Event,
        FinishedEvent,
        FinishReason,
        RequestOutput,
        SamplingParams,
        TokenLogprob,
        TokensEvent,
        Usage,
    )
    from infer_engine.shared import SharedKVPool, SharedRadixCache
    from infer_engine.stats import EngineStats, TenantCacheUsage

_HOMES = {
    "infer_engine.cache": ("RadixCache", "RadixKey"),
    "infer_engine.config": ("EngineConfig", "Share"),
    "infer_engine.engine": ("InferenceEngine",),
    "infer_engine.errors": (
        "ConfigError",
        "EngineClosedError",
        "InferEngineError",
        "InvalidRequestError",
        "ModelLoadError",
        "QueueFullError",
        "RejectedError",
        "RetryableError",
        "StaleHandle",
    ),
    "infer_engine.model.protocol": ("CacheAwareModel", "ForwardBatch", "ModelInfo", "RaggedModel", "SequenceCache"),
    "infer_engine.request": (
        "Event",
        "FinishReason",
        "FinishedEvent",
        "RequestOutput",
        "SamplingParams",
        "TokenLogprob",
        "TokensEvent",
        "Usage",
    ),
    "infer_engine.shared": ("SharedKVPool", "SharedRadixCache"),
    "infer_engine.stats": ("EngineStats", "TenantCacheUsage"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CacheAwareModel",
    "ConfigError",
    "EngineClosedError",
    "EngineConfig",
    "EngineStats",
    "Event",
    "FinishReason",
    "FinishedEvent",
    "ForwardBatch",
    "InferEngineError",
    "InferenceEngine",
    "InvalidRequestError",
    "ModelInfo",
    "ModelLoadError",
    "QueueFullError",
    "RadixCache",
    "RadixKey",
    "RaggedModel",
    "RejectedError",
    "RequestOutput",
    "RetryableError",
    "SamplingParams",
    "SequenceCache",
    "Share",
    "SharedKVPool",
    "SharedRadixCache",
    "StaleHandle",
    "TenantCacheUsage",
    "TokenLogprob",
    "TokensEvent",
    "Usage",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'infer_engine' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
