"""The README's commands as a reader runs them: one `inferengine up` of the example deployment, a real model, real terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infer_server.client import Client, Retryable

REPOSITORY = Path(__file__).parents[2]
INFERENGINE = [sys.executable, "-m", "infer_server.commands"]
SECONDS = 180.0
"""Every wait ends by then."""
QUESTION = "What is a lighthouse for?"


class Quickstart:
    def __init__(self, home: Path) -> None:
        self.environment = {**os.environ, "XDG_STATE_HOME": str(home)}
        self.state = home / "inferengine" / "quickstart"
        self.output = home / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*INFERENGINE, "up", "-f", "manifests/examples/quickstart.yaml"],
                cwd=REPOSITORY,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=REPOSITORY,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def chat(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self.run(*INFERENGINE, "chat", *arguments, stdin=stdin)

    def status(self) -> dict[str, Any]:
        answer = self.run(*INFERENGINE, "status", "--output", "json")
        return dict(json.loads(answer.stdout)) if answer.returncode == 0 else {}

    def credentials(self, tenant: str) -> Path:
        return self.state / "credentials" / f"{tenant}.json"

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, f"ended, waiting for {what}: {self.output.read_text()}"
            assert time.monotonic() < deadline, f"still waiting for {what}: {self.output.read_text()}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def quickstart() -> Iterator[Quickstart]:
    with tempfile.TemporaryDirectory(prefix="ie-") as home:  # short: it holds a Unix socket
        quickstart = Quickstart(Path(home))
        try:
            quickstart.until(lambda: "metrics: http://" in quickstart.output.read_text(), "readiness")
            yield quickstart
        finally:
            if quickstart.process.poll() is None:
                quickstart.process.terminate()
                quickstart.process.wait(SECONDS)


def test_status_finds_the_only_deployment(quickstart: Quickstart) -> None:
    status = quickstart.status()
    assert (status["name"], status["running"], status["ready"]) == ("quickstart", True, True)
    assert [tenant["name"] for tenant in status["tenants"]] == ["acme", "globex"]


def test_chat_streams_one_answer(quickstart: Quickstart) -> None:
    with Client.from_credentials(quickstart.credentials("acme")) as client:
        expected = client.generate(messages=[{"role": "user", "content": QUESTION}], max_tokens=12, temperature=0.0)
    said = quickstart.chat("--tenant", "acme", "--max-tokens", "12", "--temperature", "0", *QUESTION.split())
    assert (said.returncode, said.stdout) == (0, f"{expected.text}\n")
    cached = expected.usage.prompt_tokens - 1
    assert said.stderr == f"[{cached + 1} prompt tokens, {cached} of them cached; 12 out; length]\n"


def test_chat_remembers_what_was_said(quickstart: Quickstart) -> None:
    options = ["--max-tokens", "8", "--temperature", "0", "--system", "Answer in one word."]
    lines = "What is the capital of France?\n\nAnd of Italy?\n"
    said = quickstart.chat("--credentials", str(quickstart.credentials("globex")), *options, stdin=lines)
    assert said.returncode == 0, said.stderr
    assert "Paris" in said.stdout.splitlines()[0]
    first, second = [line for line in said.stderr.splitlines() if line.startswith("[")]
    num_prompt = [int(line.removeprefix("[").split()[0]) for line in (first, second)]
    num_cached = int(second.split(" of them")[0].rsplit(" ", 1)[1])
    assert num_prompt[0] < num_cached < num_prompt[1]  # the second turn begins with the whole first one


def test_chat_says_what_is_wrong(quickstart: Quickstart) -> None:
    nobody = quickstart.chat("--tenant", "nobody", "hello")
    assert nobody.returncode == 2
    assert nobody.stderr == (
        f"inferengine chat: no credentials of tenant 'nobody' in {quickstart.state}: is `inferengine up` running? "
        "Otherwise give --credentials FILE\n"
    )
    hot = quickstart.chat("--tenant", "acme", "--temperature", "nan", "hello")
    assert hot.returncode == 1
    assert hot.stderr.startswith("inferengine chat: invalid_request: temperature: got nan; must be a finite number")
    both = quickstart.chat("hello")
    assert both.returncode == 2
    assert "give either --tenant NAME or --credentials FILE" in both.stderr


def test_six_lines_of_plain_pyzmq_talk_to_the_model(quickstart: Quickstart) -> None:
    prompt = "The capital of France is"
    credentials = quickstart.credentials("acme")
    said = quickstart.run(sys.executable, "examples/six_lines.py", str(credentials), prompt)
    assert said.returncode == 0, said.stderr
    assert len(said.stdout) > 20
    wrong = quickstart.run(sys.executable, "examples/six_lines.py", str(credentials), "")
    assert (wrong.returncode, wrong.stderr) == (1, "prompt: is empty; at least one token is needed\n")


def refused(client: Client) -> bool:
    try:
        client.generate("hello", max_tokens=1)
    except Retryable as error:
        return error.code == "draining"
    return False


def test_sigterm_lets_a_running_answer_finish(quickstart: Quickstart) -> None:
    """The last: it ends what the others use."""
    with Client.from_credentials(quickstart.credentials("acme")) as client:
        stream = client.stream("Once upon a time", max_tokens=120, temperature=0.0, ignore_eos=True)
        num_tokens = len(next(stream).token_ids)
        quickstart.process.send_signal(signal.SIGTERM)
        quickstart.until(lambda: "draining" in quickstart.output.read_text(), "the drain")
        quickstart.until(lambda: refused(client), "new requests to be refused")
        num_tokens += sum(len(delta.token_ids) for delta in stream)
    assert (num_tokens, stream.finish_reason) == (120, "length")
    assert quickstart.process.wait(SECONDS) == 0
    assert quickstart.output.read_text().endswith("stopped\n")
    status = quickstart.status()
    assert (status["running"], status["ready"]) == (False, False)
