"""Asks a pod over HTTP whether it is ready."""

from __future__ import annotations

import asyncio
import http.client
from dataclasses import dataclass

import msgspec

TIMEOUT_SECONDS = 1.0


class _Answer(msgspec.Struct):
    ready: bool
    reasons: list[str] = []


@dataclass(frozen=True, slots=True)
class Readiness:
    ready: bool
    reasons: tuple[str, ...] = ()


def ask(host: str, port: int) -> Readiness | None:
    """None: no answer that makes sense."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        answer = msgspec.json.decode(response.read(), type=_Answer)
    except (OSError, http.client.HTTPException, msgspec.DecodeError):
        return None
    finally:
        connection.close()
    return Readiness(answer.ready and response.status == 200, tuple(answer.reasons))


async def readiness(host: str, port: int) -> Readiness | None:
    return await asyncio.to_thread(ask, host, port)
