"""The function library's text in, the library loaded in the store out. Its name carries the major version of its interface."""

from __future__ import annotations

from importlib.resources import files

from redis.asyncio import Redis

NAME = "inferengine_quota_v1"


def text() -> str:
    return (files("infer_server.quota") / "scripts" / "quota.lua").read_text(encoding="utf-8")


async def ensure_loaded(client: Redis, code: str) -> None:
    """Loads `code` unless the store has just that: loading replicates and goes to the AOF, so not at every start."""
    for library in await client.function_list(library=NAME, withcode=True):
        fields = library if isinstance(library, dict) else dict(zip(library[::2], library[1::2], strict=True))
        if fields["library_code"] == code:
            return
    await client.function_load(code, replace=True)
