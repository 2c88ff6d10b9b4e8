"""A store URL in, a redis-py client that fails fast out; and every failure of the store as QuotaUnavailable.

redis-py's defaults (10 retries, 5 s) would make a caller wait a minute for a store that is gone. Here each attempt has
`timeout_seconds` and there is one retry: safe, since each quota function is idempotent.

A URL may hold a password. It is parsed here, so that no parser's error can quote it; messages name the store by its label.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from infer_engine.errors import ConfigError
from infer_server.quota.errors import QuotaUnavailable

MAX_CONNECTIONS = 32
SCHEMES = ("redis", "rediss", "unix")
OPTIONS = frozenset(
    {"db", "username", "password", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
)
"""what a URL's query may set; time-outs and retries are ours to choose"""


@dataclass(frozen=True, slots=True)
class Connection:
    client: Redis
    label: str
    """the store's address without user and password: fit for messages and logs"""

    @asynccontextmanager
    async def guarded(self) -> AsyncIterator[None]:
        """Everything that the store or the way to it does wrong leaves this block as QuotaUnavailable."""
        try:
            yield
        except ResponseError as error:
            raise QuotaUnavailable(f"the quota store at {self.label} refuses the call: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            # redis-py wraps a failed log-in in a ConnectionError
            if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
                message = f"the quota store at {self.label} refuses our user or password: {error}"
            else:
                message = f"the quota store at {self.label} does not answer, nothing is admitted meanwhile: {error}"
            raise QuotaUnavailable(message) from error


def connect(url: str, *, timeout_seconds: float) -> Connection:
    """Opens nothing yet. Raises ConfigError for a URL that cannot be used, without quoting it."""
    parts = _split(url)
    if parts is None:  # raised here and not where it was found, so that no parser's error hangs on to it
        raise ConfigError(
            "the quota store's URL cannot be read: allowed are redis://[user:password@]host[:port][/db], the same with "
            "rediss:// for TLS, and unix://[user:password@]/path/to/store.sock, each with options of "
            f"{', '.join(sorted(OPTIONS))}; percent-encode special characters in a password"
        )
    pool = BlockingConnectionPool.from_url(
        url,
        decode_responses=True,
        max_connections=MAX_CONNECTIONS,
        timeout=4 * timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 1),
    )
    return Connection(Redis.from_pool(pool), _label(parts))


def _split(url: str) -> SplitResult | None:
    """None for a URL that is not of a kind that we use, or that a parser may take apart in a way other than was meant: there,
    a piece of a password can end up as host, port or path, and from there in a message."""
    try:
        parts = urlsplit(url)
        _ = parts.port
        options = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        int(options.get("db", ["0"])[0])
    except ValueError:
        return None
    usable = (
        parts.scheme in SCHEMES
        and not parts.fragment
        and "@" not in parts.path + parts.query
        and parts.netloc.count("@") <= 1
        and OPTIONS.issuperset(options)
        and (parts.path and not parts.hostname if parts.scheme == "unix" else re.fullmatch(r"/?|/\d+", parts.path))
    )
    return parts if usable else None


def _label(parts: SplitResult) -> str:
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or "localhost"
    return f"{parts.scheme}://{host}:{parts.port or 6379}{parts.path}"


def is_missing_function(error: Any) -> bool:
    return isinstance(error, ResponseError) and "function not found" in str(error).lower()
