"""Where to connect and as whom: a small JSON file that the operator, or `inferengine up`, writes for each tenant."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import msgspec
import zmq
from msgspec import Struct
from zmq.utils import z85


class Credentials(Struct, frozen=True, kw_only=True, rename="camel"):
    """Keys are CURVE keys in Z85, 40 characters. Raises ValueError that names the field."""

    endpoint: str
    server_public_key: str
    client_public_key: str
    client_secret_key: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"tcp://.+:[0-9]+", self.endpoint):
            raise ValueError(f"endpoint: got {self.endpoint!r}; must be tcp://HOST:PORT")
        for field in ("server_public_key", "client_public_key", "client_secret_key"):
            if not _is_key(getattr(self, field)):
                raise ValueError(f"{field}: must be a CURVE key in Z85, 40 characters")

    def __repr__(self) -> str:
        return f"Credentials(endpoint={self.endpoint!r}, client_public_key={self.client_public_key!r})"

    @classmethod
    def load(cls, path: str | Path, secret_key_file: str | Path | None = None) -> Credentials:
        """secret_key_file: with the secret key of a tenant that has a pair of its own, which no other file holds.

        Raises OSError, or ValueError that names the file and the field.
        """
        own = {} if secret_key_file is None else _pair(Path(secret_key_file))
        try:
            fields = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, str]) | own
            if "serverPublicKey" in fields and not {"clientPublicKey", "clientSecretKey"} & fields.keys():
                raise ValueError(
                    f"{path}: has no client keys, since this tenant has a pair of its own: give the file with its secret key "
                    "too (secret_key_file, or --secret-key-file)"
                )
            return msgspec.convert(fields, type=cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"{path}: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a credentials file, which is JSON: {error}") from error


def _pair(secret_key_file: Path) -> dict[str, str]:
    """The public key follows from the secret one."""
    try:
        secret = secret_key_file.read_text().strip()
    except UnicodeDecodeError:
        secret = ""
    if not _is_key(secret):
        raise ValueError(f"{secret_key_file}: must hold a CURVE secret key in Z85, 40 characters")
    return {"clientPublicKey": zmq.curve_public(secret.encode()).decode(), "clientSecretKey": secret}


def _is_key(text: str) -> bool:
    try:
        return len(z85.decode(text)) == 32
    except (ValueError, KeyError, struct.error):  # the last for five characters that say more than four bytes
        return False
