"""A store URL in, a redis-py client that fails fast out; and every failure of the store as QuotaUnavailable.

redis-py's defaults (10 retries, 5 s) would make a caller wait a minute for a store that is gone. Here each attempt has
`timeout_seconds` and there is one retry: safe, since each quota function is idempotent.

A URL may hold a password. It is parsed here, so that no parser's error can quote it; messages name the store by its label.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from infer_engine.errors import ConfigError
from infer_server.quota.errors import QuotaUnavailable

MAX_CONNECTIONS = 32
SCHEMES = ("redis", "rediss", "unix")


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
        except (AuthenticationError, NoPermissionError) as error:
            raise QuotaUnavailable(
                f"the quota store at {self.label} refuses our user or password, or lacks a permission for it: {error}"
            ) from error
        except ResponseError as error:
            raise QuotaUnavailable(f"the quota store at {self.label} refuses the call: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            raise QuotaUnavailable(
                f"the quota store at {self.label} does not answer, nothing is admitted meanwhile: {error}"
            ) from error


def connect(url: str, *, timeout_seconds: float) -> Connection:
    """Opens nothing yet. Raises ConfigError for a URL that cannot be used, without quoting it."""
    label = _label(url)
    retry = Retry(NoBackoff(), 1)
    pool = BlockingConnectionPool.from_url(
        url,
        decode_responses=True,
        max_connections=MAX_CONNECTIONS,
        timeout=4 * timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=retry,
    )
    return Connection(Redis.from_pool(pool), label)


def _label(url: str) -> str:
    parts = _split(url)
    if parts is None or parts.scheme not in SCHEMES:
        raise ConfigError(
            "the quota store's URL cannot be read: allowed are redis://[user:password@]host[:port][/db], the same with "
            "rediss:// for TLS, and unix:///path/to/store.sock; percent-encode special characters in a password"
        )
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or "localhost"
    return f"{parts.scheme}://{host}:{parts.port or 6379}{parts.path}"


def _split(url: str) -> SplitResult | None:
    """None for a URL that a parser may take apart in a way other than was meant: there, a piece of a password can end up as
    host, port or path and from there in a message."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    if "@" in parts.path or parts.fragment or parts.netloc.count("@") > 1:
        return None
    if parts.scheme == "unix" and not parts.path:
        return None
    return parts


def is_missing_function(error: Any) -> bool:
    return isinstance(error, ResponseError) and "function not found" in str(error).lower()
