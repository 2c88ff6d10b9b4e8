"""`inferengine demo`: a tour that makes each promise happen and checks it, on a real model.

In: a deployment file with two tenants. It starts `inferengine up` as a user would, speaks to it by the client library
alone, compares what the clients saw with what Prometheus shows, and ends with a table. A promise that is not kept ends
the tour with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from infer_server.client import AuthenticationFailed, Client, Completion, Credentials, InferError, Usage

START_TIMEOUT_S = 600.0
SHARED_PROMPT = (
    "You are the assistant of a small library in a harbour town. You answer visitors in one or two friendly sentences. "
    "The library opens at nine in the morning and closes at six in the evening, on Saturdays at one. Books are lent for four "
    "weeks and may be renewed twice, unless another reader waits for them. A lost book is replaced at its price. Children "
    "under fourteen borrow with a parent's card. The reading room has maps of the coast from 1820 to this day, which stay in the "
    "house. On the first Thursday of the month a sailor tells of the sea, and everybody is welcome. The cat is called Ishmael, "
    "sleeps on the atlas shelf and must not be fed. "
)


@dataclass
class Tour:
    """What has been seen so far; `claim` is the one place where a promise is checked."""

    seen: list[tuple[str, str]] = field(default_factory=list)
    usage: dict[str, dict[str, int]] = field(default_factory=dict)

    def claim(self, promise: str, kept: bool, evidence: str) -> None:
        print(f"   {'✓' if kept else '✗'} {promise}: {evidence}", flush=True)
        if not kept:
            raise BrokenPromiseError(f"{promise}: {evidence}")
        self.seen.append((promise, evidence))

    def count(self, tenant: str, usage: Usage) -> None:
        total = self.usage.setdefault(tenant, {"prompt": 0, "cached": 0, "generated": 0, "requests": 0})
        total["prompt"] += usage.prompt_tokens
        total["cached"] += usage.cached_tokens
        total["generated"] += usage.output_tokens
        total["requests"] += 1


class BrokenPromiseError(Exception):
    pass


def demo(argv: list[str]) -> int:
    """A tour of a served model with two tenants; every claim is checked."""
    parser = argparse.ArgumentParser(prog="inferengine demo", description=demo.__doc__)
    parser.add_argument("-f", "--file", type=Path, default=Path("manifests/examples/quickstart.yaml"))
    args = parser.parse_args(argv)
    if not args.file.is_file():
        print(f"inferengine demo: no such file: {args.file}; give one with -f FILE", file=sys.stderr)
        return 2
    tour = Tour()
    with tempfile.TemporaryDirectory(prefix="inferengine-demo-") as state:
        try:
            with running(args.file, Path(state)) as status:
                take(tour, Path(state), status)
        except (BrokenPromiseError, InferError) as error:
            print(f"\nThe tour ends here: {error}", file=sys.stderr)
            return 1
    print("\nWhat was seen")
    for promise, evidence in tour.seen:
        print(f"  {promise:<58}  {evidence}")
    print(
        f"\nServe it yourself: inferengine up -f {args.file}\nand in another terminal: inferengine chat --tenant acme"
    )
    return 0


@contextmanager
def running(file: Path, state: Path) -> Iterator[dict[str, object]]:
    """`inferengine up` as a child, ready; drained by SIGTERM at the end. Yields what `inferengine status` reports."""
    base = [sys.executable, "-m", "infer_server.commands"]
    process = subprocess.Popen([*base, "up", "-f", str(file), "--state-dir", str(state)])
    try:
        yield _wait_ready(process, [*base, "status", "--output", "json", "--state-dir", str(state)])
        process.send_signal(signal.SIGTERM)
        if code := process.wait(timeout=60):
            raise BrokenPromiseError(f"`inferengine up` ended with exit code {code} after SIGTERM")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)


def _wait_ready(process: subprocess.Popen[bytes], status: list[str]) -> dict[str, object]:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BrokenPromiseError(f"`inferengine up` ended with exit code {process.returncode} before it was ready")
        report = subprocess.run(status, capture_output=True, check=False)
        if report.returncode == 0 and (seen := json.loads(report.stdout)).get("ready"):
            return dict(seen)
        time.sleep(0.3)
    raise BrokenPromiseError(f"not ready within {START_TIMEOUT_S:.0f} s")


def take(tour: Tour, state: Path, status: dict[str, object]) -> None:
    """The stations of the tour, in order. `acme` has a generous quota, `globex` a small one."""
    credentials = {name: state / "credentials" / f"{name}.json" for name in ("acme", "globex")}
    with Client.from_credentials(credentials["acme"]) as acme, Client.from_credentials(credentials["globex"]) as globex:
        _stream(tour, acme)
        _share(tour, acme, globex)
        _refuse_key(tour, credentials)
        refused = _exhaust(tour, globex)
    _compare(tour, str(status["metricsUrl"]), refused)


def _stream(tour: Tour, acme: Client) -> None:
    print("\n1. acme talks to the model, token by token")
    stream = acme.stream(
        messages=[{"role": "user", "content": "What is a lighthouse for?"}], max_tokens=48, temperature=0.0
    )
    print("   ", end="")
    pieces = 0
    for delta in stream:
        print(delta.text.replace("\n", "\n   "), end="", flush=True)
        pieces += 1
    print()
    assert stream.usage is not None
    tour.count("acme", stream.usage)
    tour.claim("a real model streams its answer", pieces > 5, f"{stream.usage.output_tokens} tokens in {pieces} pieces")


def _share(tour: Tour, acme: Client, globex: Client) -> None:
    print("\n2. Two requests with one long beginning; then another tenant sends the very same text")

    def ask(tenant: str, client: Client, question: str) -> Completion:
        messages = [{"role": "system", "content": SHARED_PROMPT}, {"role": "user", "content": question}]
        done = client.generate(messages=messages, max_tokens=16, temperature=0.0)
        tour.count(tenant, done.usage)
        print(
            f"   {tenant:<7} {question:<25} {done.usage.prompt_tokens} prompt tokens, {done.usage.cached_tokens:>3} cached; "
            f"first token after {done.ttft_ms or 0:.0f} ms"
        )
        return done

    first = ask("acme", acme, "May I feed the cat?")
    second = ask("acme", acme, "When do you close today?")
    other = ask("globex", globex, "When do you close today?")
    share = second.usage.cached_tokens / second.usage.prompt_tokens
    tour.claim(
        "a shared beginning is computed once", share > 0.8, f"{share:.0%} of acme's second prompt came from its cache"
    )
    tour.claim(
        "the first request had nothing to share",
        first.usage.cached_tokens < 20,
        f"{first.usage.cached_tokens} tokens cached (how every chat begins)",
    )
    tour.claim(
        "a tenant never hits another's cache", other.usage.cached_tokens == 0, "globex, same text: 0 tokens cached"
    )
    tour.claim(
        "the cache changes no answer",
        other.text == second.text,
        "acme (cached) and globex (computed) got the same text",
    )


def _refuse_key(tour: Tour, credentials: dict[str, Path]) -> None:
    print("\n3. globex knocks at acme's endpoint with its own, valid key")
    own, other = Credentials.load(credentials["globex"]), Credentials.load(credentials["acme"])
    try:
        with Client(**msgspec.structs.asdict(own) | {"endpoint": other.endpoint}) as client:
            client.generate("Hello", max_tokens=1, timeout=20)
    except AuthenticationFailed as error:
        tour.claim("another tenant's key is refused", True, error.code)
    else:
        tour.claim("another tenant's key is refused", False, "it was let in")


def _exhaust(tour: Tour, globex: Client) -> int:
    """Ask until the quota says no; return how many requests were refused."""
    print("\n4. globex asks more often than its quota allows")
    for _ in range(1000):
        try:
            tour.count("globex", globex.generate("One more thing:", max_tokens=1, temperature=0.0).usage)
        except InferError as error:
            admitted = tour.usage["globex"]["requests"]
            evidence = f"after {admitted} requests: {error.code}, again in {(error.retry_ms or 0) / 1000:.1f} s"
            tour.claim("a quota refuses, and says when to come back", error.code.startswith("quota_"), evidence)
            return 1
    raise BrokenPromiseError("a thousand requests in a row and the quota refused none of them")


def _compare(tour: Tour, metrics_url: str, refused: int) -> None:
    """What Prometheus shows of each tenant equals what its client was told."""
    print("\n5. The same, as Prometheus sees it")
    shown = Metrics(metrics_url)
    for tenant, told in sorted(tour.usage.items()):
        metered = {
            "prompt": shown.value("inferengine_prompt_tokens_total", tenant),
            "cached": shown.value("inferengine_cached_tokens_total", tenant),
            "generated": shown.value("inferengine_generated_tokens_total", tenant),
            "requests": sum(
                shown.value("inferengine_requests_total", tenant, outcome=outcome) for outcome in ("stop", "length")
            ),
        }
        evidence = ", ".join(f"{name} {value:.0f}" for name, value in metered.items())
        tour.claim(f"the metrics of {tenant} equal what its client was told", metered == told, evidence)
    denied = {
        tenant: shown.value("inferengine_quota_decisions_total", tenant, decision="requests_per_minute")
        for tenant in tour.usage
    }
    evidence = ", ".join(f"{tenant} {count:.0f}" for tenant, count in sorted(denied.items()))
    tour.claim("the refusal is counted for globex alone", denied == {"acme": 0, "globex": refused}, evidence)


class Metrics:
    """One scrape of a pod's /metrics."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        self._samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, tenant: str, **labels: str) -> float:
        """Sum over the samples that carry these labels; 0 where there are none."""
        wanted = {"tenant": tenant, **labels}
        return sum(s.value for s in self._samples if s.name == name and wanted.items() <= s.labels.items())
