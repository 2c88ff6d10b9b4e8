"""The function library's text in, the library loaded in the store out. Its name carries the major version of its interface."""

from __future__ import annotations

import logging
from importlib.resources import files

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

log = logging.getLogger(__name__)

NAME = "inferengine_quota_v1"


def text() -> str:
    return (files("infer_server.quota") / "scripts" / "quota.lua").read_text(encoding="utf-8")


async def ensure_loaded(client: Redis, code: str) -> None:
    """Loads `code` unless the store has just that: loading replicates and goes to the AOF, so not at every start.

    In a store that others share, a user may have no right to load (charts/valkey): what has our name has our interface.
    """
    found = await client.function_list(library=NAME, withcode=True)
    for library in found:
        fields = library if isinstance(library, dict) else dict(zip(library[::2], library[1::2], strict=True))
        if fields["library_code"] == code:
            return
    try:
        await client.function_load(code, replace=True)
    except NoPermissionError:
        if not found:
            raise
        log.warning(
            "the store's functions are those of another release, and not ours to replace: they are used as they are"
        )
