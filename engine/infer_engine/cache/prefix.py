"""What is looked up in the prefix cache and what comes back: keys, handles and results, all frozen for their holder.

In: tokens in any of the forms that callers have. Out: the form that compares fastest, int32 bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from infer_engine.cache.node import TOKEN_BYTES, Node
from infer_engine.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from infer_engine.cache.radix import RadixCache

    TokenRun: TypeAlias = Sequence[int] | npt.NDArray[np.int32]


class RadixKey:
    """The tokens of a prompt and the namespace that they belong to. Equal if both are; no prefix crosses a namespace."""

    __slots__ = ("data", "group", "namespace")

    data: bytes
    """The tokens as int32, little-endian."""
    namespace: str
    group: str
    """Whose share of the pool it counts to. Of a namespace all counts to one group: the one that used it first."""

    def __init__(self, tokens: TokenRun, namespace: str = "", group: str = "") -> None:
        """`tokens`: integers that fit in 32 bits, as a sequence, an array('i'), a numpy array, or as int32 little-endian bytes.

        The last three are copied as they are; a list costs about 10 ns a token. Raises InvalidRequestError.
        """
        given: object = namespace
        if not isinstance(given, str):
            raise InvalidRequestError(f"namespace: got {namespace!r}; must be a string")
        object.__setattr__(self, "data", _to_bytes(tokens))
        object.__setattr__(self, "namespace", namespace)
        object.__setattr__(self, "group", group)

    @classmethod
    def with_namespace(cls, tokens: TokenRun, namespace: str, group: str = "") -> RadixKey:
        return cls(tokens, namespace, group)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.data) // TOKEN_BYTES

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a RadixKey cannot be changed")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RadixKey):
            return NotImplemented
        return self.namespace == other.namespace and self.data == other.data

    def __hash__(self) -> int:
        return hash((self.namespace, self.data))

    def __repr__(self) -> str:
        return f"RadixKey({len(self)} tokens in {self.namespace!r})"


def _to_bytes(tokens: TokenRun) -> bytes:
    if isinstance(tokens, bytes | bytearray):
        if len(tokens) % TOKEN_BYTES:
            raise InvalidRequestError(f"tokens: got {len(tokens)} bytes; int32 tokens take a multiple of {TOKEN_BYTES}")
        return bytes(tokens)
    if isinstance(tokens, array):
        if tokens.typecode == "i":
            return tokens.tobytes()
    elif not isinstance(tokens, Sequence) and _is_int32_row(tokens):
        return tokens.tobytes()
    try:
        return array("i", tokens).tobytes()
    except (TypeError, OverflowError) as error:
        raise InvalidRequestError(f"tokens: must be integers that fit in 32 bits, in one dimension: {error}") from error


def _is_int32_row(tokens: npt.NDArray[np.int32]) -> bool:
    """Asked of any object: numpy is not imported for it."""
    return getattr(tokens, "ndim", 0) == 1 and getattr(tokens.dtype, "str", "") == "<i4"


class Handle:
    """A prefix in the cache, as a match or an insert found it. Compared by identity: unlock the object that you locked.

    Good until its prefix is evicted or its namespace dropped; splits and other inserts do not harm it. A handle without
    tokens is always good, except while it is locked in a namespace that was dropped.
    """

    __slots__ = ("_cache", "_node", "_num_locks", "_num_tokens")

    def __init__(self, cache: RadixCache, node: Node, num_tokens: int) -> None:
        self._cache = cache
        self._node = node  # written by RadixCache.lock; while locked it ends exactly at num_tokens
        self._num_locks = 0  # written by RadixCache.lock and unlock
        self._num_tokens = num_tokens

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    @property
    def namespace(self) -> str:
        return self._node.root.namespace

    @property
    def is_locked(self) -> bool:
        return self._num_locks > 0

    def __repr__(self) -> str:
        return f"Handle({self._num_tokens} tokens in {self.namespace!r}, {self._num_locks} locks)"


class MatchResult(NamedTuple):
    """`slots` is a copy of the tree's slots of the first `num_tokens` tokens; they stay the tree's.

    They hold these tokens' K/V for as long as `handle` is locked (or nothing was evicted or dropped).
    """

    num_tokens: int
    slots: array[int]
    handle: Handle


class InsertResult(NamedTuple):
    """`num_existing`: how many leading tokens the tree already had. `handle` covers the whole key and is not locked."""

    num_existing: int
    handle: Handle


class NamespaceUsage(NamedTuple):
    num_tokens: int
    """Held by the tree, also those of a dropped namespace that are still locked."""
    num_protected_tokens: int
    """Of these, locked."""
