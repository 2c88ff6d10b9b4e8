"""Fresh identities: CURVE key pairs, uids, the key that mints cache namespaces. Nothing is stored here."""

from __future__ import annotations

import secrets
import struct
import uuid

import zmq
from zmq.utils import z85

FIELD_PRIME = 2**255 - 19
LOW_ORDER = (
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    FIELD_PRIME - 1,
    FIELD_PRIME,
    FIELD_PRIME + 1,
)
"""Points of Curve25519 with which every secret key agrees on a secret that anybody knows (https://cr.yp.to/ecdh.html#validate)"""


def curve_pair() -> tuple[str, str]:
    """(public key, secret key), Z85, 40 characters each."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def curve_public(secret: str) -> str:
    """The public key of a secret one. Raises ValueError for what is no key."""
    try:
        return zmq.curve_public(secret.encode()).decode()
    except (zmq.ZMQError, ValueError, UnicodeEncodeError) as error:
        raise ValueError("not a CURVE secret key: it must be 40 characters of Z85") from error


def public_key_error(public: str) -> str | None:
    """Why this can't be a client's public key, and what to do; None if it can."""
    hint = "must be the public half of a CURVE pair, as zmq.curve_keypair() makes it"
    try:
        point = z85.decode(public)
    except (ValueError, KeyError, struct.error):  # the last for five characters that say more than four bytes
        return f"{hint}: this is not Z85"
    if len(point) != 32:
        return f"{hint}: 40 characters, not {len(public)}"
    if int.from_bytes(point, "little") % 2**255 in LOW_ORDER:  # the highest bit is ignored
        return f"{hint}: with this one no connection is secret"
    return None


def namespace_key() -> str:
    """32 random bytes, hexadecimal."""
    return secrets.token_hex(32)


def uid() -> str:
    return str(uuid.uuid4())


def password() -> str:
    """Fit for a URL without escapes."""
    return secrets.token_hex(24)
