"""Where to connect and as whom: a small JSON file that the operator, or `inferengine up`, writes for each tenant."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
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
    def load(cls, path: str | Path) -> Credentials:
        """Raises OSError, or ValueError that names the file and the field."""
        try:
            return msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"{path}: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a credentials file, which is JSON: {error}") from error


def _is_key(text: str) -> bool:
    try:
        return len(z85.decode(text)) == 32
    except (ValueError, KeyError):
        return False
