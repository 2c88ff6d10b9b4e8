"""The desired-state document: all that a pod needs to know of its deployment's tenants, written by the operator (or `up`).

Flows one way, operator -> store -> pod. It carries public keys only: no secret ever enters it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9]{0,23}[a-z0-9])?$",
        max_length=25,
        description="a DNS label of at most 25 characters",
    ),
]
PublicKey = Annotated[str, Meta(min_length=40, max_length=40, description="a CURVE public key in Z85, 40 characters")]
Count = Annotated[int, Meta(ge=1, le=2**53)]


class QuotaLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """What one tenant may use, over all pods. None: no limit. A burst of None is one minute's worth."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrent_requests: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    cached_token_weight: Annotated[float, Meta(ge=0, le=1)] = 1.0
    requests_burst: Count | None = None
    tokens_burst: Count | None = None


class CacheShare(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """What one tenant may have of each pod: of its KV pool, in tokens, running and cached together; and of its computing."""

    min_tokens: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """No other tenant takes any of these away."""
    max_tokens: Count | None = None
    weight: Annotated[float, Meta(ge=0.01, le=1000)] = 1.0
    """Of its share in what is computed, and in what is over when room is needed."""
    ttl_seconds: Annotated[int, Meta(ge=1, le=31_536_000)] | None = None
    """How long cached tokens stay that nobody uses; absent: until room is needed."""
    insert: Literal["Allow", "Deny"] = "Allow"
    """Deny: its requests leave nothing in the prefix cache."""
    zero_on_free: bool = False
    """Overwrite its keys and values before another's may lie there."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"maxTokens: got {self.max_tokens}; must be at least minTokens ({self.min_tokens})")


class TenantEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    name: Name
    uid: str
    """Minted when the tenant first appears; the epoch of its cache."""
    port: Annotated[int, Meta(ge=1, le=65535)]
    public_keys: tuple[PublicKey, ...]
    quota: QuotaLimits = QuotaLimits()
    cache: CacheShare = CacheShare()
    suspended: bool = False


class Version(Struct, frozen=True, kw_only=True, order=True, forbid_unknown_fields=True, rename="camel"):
    """`revision` rises with every change of content, by compare-and-set. A different uid replaces."""

    uid: str
    generation: int
    revision: int


class DesiredState(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    version: Version
    namespace: str
    """The Kubernetes namespace; `local` on a laptop."""
    deployment: Name
    tenants: tuple[TenantEntry, ...] = ()

    def tenant_id(self, tenant: str) -> str:
        return f"{self.namespace}/{self.deployment}/{tenant}"


def encode(document: DesiredState) -> bytes:
    return msgspec.json.encode(document)


def decode(data: bytes) -> DesiredState:
    """Raises msgspec.ValidationError naming the path of what is wrong."""
    return msgspec.json.decode(data, type=DesiredState)
