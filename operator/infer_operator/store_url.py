"""A quota store's URL as somebody wrote it in; the same out, or why it is refused, not repeating it: it has a password.

The client library takes any argument of a connection out of a URL: its timeouts, its class, a socket of this machine. Who owns a
namespace may say where its store is, and nothing about how this process waits for it.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

FORM = "redis[s]://[USER:PASSWORD@]HOST[:PORT][/DB], what is special in the password as %XX"
OPTIONS = ("db", "ssl_ca_certs")


def checked(url: str) -> str:
    """Raises ValueError."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0 and not parts.fragment
    except ValueError:  # its text may be a part of the password
        known = False
    if not known:
        raise ValueError(f"must be {FORM}")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in OPTIONS:
            raise ValueError(f"an option other than {' and '.join(OPTIONS)} must be absent")
        if name == "ssl_ca_certs" and not _is_certificate_file(value):
            raise ValueError("ssl_ca_certs must be a file that is mounted here, too")
    return url


def _is_certificate_file(name: str) -> bool:
    """A device such as /dev/zero would be read for ever; files of /proc have no size."""
    try:
        path = Path(name)
        return path.is_file() and path.stat().st_size > 0
    except (OSError, ValueError):
        return False
