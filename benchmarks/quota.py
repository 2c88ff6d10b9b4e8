"""What a request pays for its quota: reserve and settle against PING, on the same socket, interleaved.

    python benchmarks/quota.py [--json FILE] [--requests N] [--concurrency N] [--url URL]

Without --url it starts the embedded store in a temporary directory. Interleaving means that each round measures all three, so
that a disturbance of the machine meets them alike; the ratio to PING is what to compare between machines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from infer_server.quota import QuotaLimits, QuotaStore

TENANT = "local/benchmark/acme"
LIMITS = QuotaLimits(
    requests_per_minute=2**40,
    tokens_per_minute=2**40,
    max_concurrent_requests=2**20,
    tokens_per_day=2**50,
    tokens_per_month=2**50,
    cached_token_weight=0.1,
)
WARM_UP = 200


async def timed(call: Callable[[], Awaitable[object]], into: list[float]) -> object:
    start = time.perf_counter()
    result = await call()
    into.append((time.perf_counter() - start) * 1e6)
    return result


async def client(store: QuotaStore, name: int, rounds: int, times: dict[str, list[float]]) -> None:
    redis = store._connection.client  # PING has no place in the store's interface
    for number in range(rounds):
        await timed(redis.ping, times["ping"])
        start = time.perf_counter()
        reservation = await store.reserve(TENANT, f"{name}-{number}", prompt_tokens=500, max_tokens=256)
        times["reserve"].append((time.perf_counter() - start) * 1e6)
        settle = partial(reservation.settle, computed_tokens=200, cached_tokens=300, output_tokens=100)
        await timed(settle, times["settle"])


def summary(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50_us": round(cuts[49], 1), "p95_us": round(cuts[94], 1), "p99_us": round(cuts[98], 1)}


async def measure(url: str | None, requests: int, concurrency: int) -> dict[str, object]:
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="quota-"))
        store = await stack.enter_async_context(QuotaStore.open(url, directory=directory, timeout_seconds=5))
        await store.set_limits(TENANT, LIMITS)
        run = f"{time.time_ns()}"
        await client(store, int(run), WARM_UP, {"ping": [], "reserve": [], "settle": []})
        times: dict[str, list[float]] = {"ping": [], "reserve": [], "settle": []}
        start = time.perf_counter()
        names = range(int(run) + 1, int(run) + 1 + concurrency)
        await asyncio.gather(*(client(store, name, requests // concurrency, times) for name in names))
        seconds = time.perf_counter() - start
    result: dict[str, object] = {name: summary(values) for name, values in times.items()}
    ping = statistics.median(times["ping"])
    result["reserve_to_ping_p50"] = round(statistics.median(times["reserve"]) / ping, 2)
    result["settle_to_ping_p50"] = round(statistics.median(times["settle"]) / ping, 2)
    result["requests_per_second"] = round(len(times["reserve"]) / seconds)
    result["requests"] = len(times["reserve"])
    result["concurrency"] = concurrency
    result["python"] = platform.python_version()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="reserve and settle against PING")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--url", help="a store to use instead of an embedded one")
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments.url, arguments.requests, arguments.concurrency))
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
