"""Mints cache namespaces: who may share computed prefixes with whom.

In flow the facts that K/V values depend on and the tenant they belong to; out flows an opaque string that the engine uses as
a separate root of its radix tree. Clients never send one, so no client can name another tenant's.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from infer_engine.request import Namespace

KEY_BYTES = 32
DIGEST_BYTES = 20


class NamespaceKeyError(Exception):
    """The key file is not 32 bytes in hexadecimal."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What K/V values of the same token ids depend on, apart from the tenant."""

    revision: str
    """weights and configuration"""
    tokenizer_digest: str
    """tokenizer and chat template"""
    kv_layout: str
    """dtype and layout of the KV pool"""


class NamespaceMinter:
    """Keyed, so that names can't be computed outside: BLAKE2b (RFC 7693) over typed, length-prefixed fields."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise NamespaceKeyError(f"the namespace key has {len(key)} bytes; it must have {KEY_BYTES}")
        self._key = key

    @classmethod
    def from_file(cls, path: str | Path) -> NamespaceMinter:
        try:
            return cls(bytes.fromhex(Path(path).read_text(encoding="ascii").strip()))
        except (ValueError, NamespaceKeyError) as error:  # the content is secret: say only what is wrong
            raise NamespaceKeyError(f"{path}: must hold {KEY_BYTES} bytes as {2 * KEY_BYTES} hex digits") from error

    def mint(self, tenant_uid: str, model: ModelIdentity, salt: str | None) -> Namespace:
        """Equal for equal arguments, different for any difference; no salt and an empty salt differ too."""
        fields = (tenant_uid, model.revision, model.tokenizer_digest, model.kv_layout, salt)
        digest = hashlib.blake2b(encode_fields(fields), key=self._key, digest_size=DIGEST_BYTES, person=b"ie-namespace")
        return Namespace(digest.hexdigest())


def encode_fields(fields: tuple[str | None, ...]) -> bytes:
    """An injective encoding: the number of fields, then for each its type, its length in bytes and its UTF-8."""
    parts = [struct.pack(">I", len(fields))]
    for field in fields:
        if field is None:
            parts.append(struct.pack(">cQ", b"n", 0))
        else:
            body = field.encode("utf-8", "surrogatepass")
            parts += [struct.pack(">cQ", b"s", len(body)), body]
    return b"".join(parts)
