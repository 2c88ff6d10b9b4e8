"""Fresh identities: CURVE key pairs, uids, the key that mints cache namespaces. Nothing is stored here."""

from __future__ import annotations

import secrets
import uuid

import zmq


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


def namespace_key() -> str:
    """32 random bytes, hexadecimal."""
    return secrets.token_hex(32)


def uid() -> str:
    return str(uuid.uuid4())


def password() -> str:
    """Fit for a URL without escapes."""
    return secrets.token_hex(24)
