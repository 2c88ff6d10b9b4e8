"""The engine's configuration: frozen, checked once, here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from infer_engine.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "bfloat16", "float16", "float32"]
SchedulingPolicy = Literal["dlpm", "fcfs", "lpm", "vtc"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits and sizes of one engine. Every wrong value raises ConfigError naming the field, the value and what is allowed.

    max_batch_size: sequences computed together in one step.
    max_queue_size: requests waiting beyond that; one more is refused with `queue_full`.
    schedule_interval_ms: the longest an idle engine waits to gather arrivals into its first batch, in ms (0: start at once).
    max_concurrent_requests: requests in progress at once, however they came; callers of `generate` and `stream` beyond that
        wait for their turn, submitted ones wait in the queue.
    max_cache_tokens: slots in the KV pool, running and cached requests together.
    num_layers, kv_dim: read from the model when None; given and different from the model's: ConfigError.
        kv_dim is num_kv_heads * head_dim.
    chunked_prefill_tokens: prompt tokens computed per step, over all requests.
    default_max_tokens: output limit of a request that names none.
    max_model_len: prompt and output together; None: the model's own limit.
    eviction_policy: what goes first from the prefix cache (cache/eviction.py): lru, lfu, fifo, or an installed one.
    scheduling_policy: whose turn it is (scheduler/fairness.py): dlpm, fcfs, lpm, vtc.
    prefix_cache: False computes every prompt in full (for measurements).
    """

    max_batch_size: int = 32
    max_queue_size: int = 256
    schedule_interval_ms: float = 1
    max_concurrent_requests: int = 64
    max_cache_tokens: int = 65536
    num_layers: int | None = None
    kv_dim: int | None = None
    chunked_prefill_tokens: int = 512
    default_max_tokens: int = 256
    max_model_len: int | None = None
    device: Device = "auto"
    dtype: DType = "auto"
    eviction_policy: str = "lru"
    scheduling_policy: SchedulingPolicy = "dlpm"
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in (
            "max_batch_size",
            "max_queue_size",
            "max_concurrent_requests",
            "max_cache_tokens",
            "chunked_prefill_tokens",
            "default_max_tokens",
        ):
            _require_positive(name, getattr(self, name))
        for name in ("num_layers", "kv_dim", "max_model_len"):
            if getattr(self, name) is not None:
                _require_positive(name, getattr(self, name))
        interval = self.schedule_interval_ms
        if isinstance(interval, bool) or not isinstance(interval, (int, float)) or not 0 <= interval <= 1000:
            raise ConfigError(f"schedule_interval_ms: got {interval!r}; must be a number from 0 to 1000")
        _require_choice("device", self.device, ("auto", "cpu", "cuda"))
        _require_choice("dtype", self.dtype, ("auto", "bfloat16", "float16", "float32"))
        _require_choice("scheduling_policy", self.scheduling_policy, get_args(SchedulingPolicy))
        if self.chunked_prefill_tokens < self.max_batch_size:
            raise ConfigError(
                f"chunked_prefill_tokens: got {self.chunked_prefill_tokens}; "
                f"must be at least max_batch_size ({self.max_batch_size})"
            )

    @classmethod
    def from_mapping(cls, fields: dict[str, object]) -> EngineConfig:
        """From a parsed file; an unknown name is refused together with the list of known ones."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise ConfigError(f"{name}: no such engine setting; known are {', '.join(sorted(known))}")
        return cls(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Share:
    """What one tenant may have of an engine. Every wrong value raises ConfigError.

    min_tokens: slots of the KV pool, running and cached together, of which no other tenant takes any away.
    max_tokens: the most that it holds; None: the whole pool.
    weight: of its share in what is computed, and in what is over when room is needed; others' is 1 unless set.
    insert: False leaves nothing of its requests in the prefix cache.
    ttl_seconds: how long cached tokens stay that nobody uses (and up to an eighth longer); None: until room is needed.
    zero_on_free: overwrite its K/V before another's may lie there.
    """

    min_tokens: int = 0
    max_tokens: int | None = None
    weight: float = 1.0
    insert: bool = True
    ttl_seconds: float | None = None
    zero_on_free: bool = False

    def __post_init__(self) -> None:
        minimum: object = self.min_tokens
        if isinstance(minimum, bool) or not isinstance(minimum, int) or minimum < 0:
            raise ConfigError(f"min_tokens: got {minimum!r}; must be an integer of at least 0")
        if self.max_tokens is not None:
            _require_positive("max_tokens", self.max_tokens)
            if self.max_tokens < self.min_tokens:
                raise ConfigError(f"max_tokens: got {self.max_tokens}; must be at least min_tokens ({minimum})")
        weight: object = self.weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0.01 <= weight <= 1000:
            raise ConfigError(f"weight: got {weight!r}; must be a number from 0.01 to 1000")
        ttl: object = self.ttl_seconds
        if ttl is not None and (
            isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 1 <= ttl <= 31_536_000
        ):
            raise ConfigError(f"ttl_seconds: got {ttl!r}; must be a number from 1 to 31536000, or None")


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}: got {value!r}; must be an integer of at least 1")


def _require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}: got {value!r}; must be one of {', '.join(allowed)}")
