"""Output tokens to text as they come, without decoding the whole output again for each.

In: token ids. Out: text that is final, so that the pieces together are what decoding all tokens at once would give. An
incomplete UTF-8 sequence waits for its other bytes.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

import tokenizers


class IncrementalDecoder(Protocol):
    def push(self, token_ids: Sequence[int]) -> str: ...

    def finish(self) -> str: ...


def new_decoder(backend: tokenizers.Tokenizer) -> IncrementalDecoder:
    """Special tokens are left out."""
    if isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
        return _ByteLevelDecoder(backend)
    return _WindowDecoder(backend)


def special_token_ids(backend: tokenizers.Tokenizer) -> frozenset[int]:
    return frozenset(token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special)


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable Latin-1 stands for itself, the other bytes follow from U+0100 on (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


class _ByteLevelDecoder:
    """For byte-level BPE each token is a run of bytes, whatever its neighbours, and the bytes are UTF-8."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._special_ids = special_token_ids(backend)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        return self._utf8.decode(b"".join(map(self._token_bytes, token_ids)))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)

    def _token_bytes(self, token_id: int) -> bytes:
        token = None if token_id in self._special_ids else self._backend.id_to_token(token_id)
        if token is None:  # a row of the embedding that no token uses
            return b""
        try:
            return bytes([_BYTE_OF_CHARACTER[character] for character in token])
        except KeyError:  # an added token, kept as plain text
            return token.encode()


class _WindowDecoder:
    """For other decoders: decode the newest tokens behind one that was decoded before.

    The text of a token depends on what precedes it (a leading space is dropped at the start only), so the newest are decoded
    together with the piece before them, whose text is then taken off. A run of byte tokens (<0x00>..<0xFF>) is decoded as a
    whole by these tokenizers, one bad byte spoiling all, so it waits for its end.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._special_ids = special_token_ids(backend)
        self._anchor: list[int] = []  # tokens already given out as text
        self._pending: list[int] = []  # tokens not yet given out

    def push(self, token_ids: Sequence[int]) -> str:
        text = ""
        for token_id in token_ids:
            token = None if token_id in self._special_ids else self._backend.id_to_token(token_id)
            if token is None:
                continue
            is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            if self._pending and not is_byte:
                text += self._flush()
            self._pending.append(token_id)
            if not is_byte:
                text += self._flush()
        return text

    def finish(self) -> str:
        return self._flush() if self._pending else ""

    def _flush(self) -> str:
        before = self._backend.decode(self._anchor)
        text = self._backend.decode(self._anchor + self._pending)[len(before) :]
        self._anchor, self._pending = self._pending, []
        return text
