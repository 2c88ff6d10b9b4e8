"""The README's commands as a reader runs them: one `inferengine up` of the example deployment, a real model, real terminals."""

from __future__ import annotations

import contextlib
import json
import os
import select
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


class Terminal:
    """A command with a person in front of it: what it writes can be waited for, what is typed reaches it."""

    def __init__(self, quickstart: Quickstart, *arguments: str) -> None:
        self._master, slave = os.openpty()
        self._seen = b""
        self.process = subprocess.Popen(
            [*INFERENGINE, *arguments],
            cwd=REPOSITORY,
            env=quickstart.environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> str:
        """What it writes up to `text`; what comes after it is for the next call."""
        deadline = time.monotonic() + SECONDS
        while text.encode() not in self._seen:
            assert time.monotonic() < deadline, f"still waiting for {text!r}: {self._seen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._seen += os.read(self._master, 4096)
        before, _, self._seen = self._seen.partition(text.encode())
        return before.decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS)
        os.close(self._master)


def test_chat_at_a_terminal_outlives_ctrl_c_and_a_refused_turn(quickstart: Quickstart) -> None:
    arguments = ["--tenant", "acme", "--temperature", "0", "--max-tokens", "1900", "--system", "Count from 1 to 1000."]
    with contextlib.closing(Terminal(quickstart, "chat", *arguments)) as terminal:
        assert "Ctrl-C stops an answer" in terminal.until("you> ")
        terminal.type("Begin.\r")
        terminal.until("Begin.\r\n")
        terminal.until(" ")  # the answer has begun
        terminal.process.send_signal(signal.SIGINT)
        assert "tokens" not in terminal.until("[stopped]")
        terminal.until("you> ")
        terminal.type(f"{'again ' * 200}\r")
        assert "max_tokens: got 1900" in terminal.until("you> ")
        terminal.type("/clear\r")
        terminal.until("you> ")
        terminal.type("Begin.\r")
        terminal.until("Begin.\r\n")
        terminal.until(" ")
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("you> ")
        terminal.type("\x04")
        assert terminal.process.wait(SECONDS) == 0


def test_chat_into_a_pipe_that_closes_ends_quietly(quickstart: Quickstart) -> None:
    chat = " ".join([*INFERENGINE, "chat", "--tenant", "acme", "--max-tokens", "60", "hello"])
    cut = quickstart.run("sh", "-c", f"{chat} | head -c 1")
    assert (len(cut.stdout), cut.stderr) == (1, "")


def test_chat_says_what_is_wrong(quickstart: Quickstart) -> None:
    nobody = quickstart.chat("--tenant", "nobody", "hello")
    assert nobody.returncode == 2
    assert nobody.stderr == (
        f"inferengine chat: no credentials of tenant 'nobody' in {quickstart.state}: there are acme, globex; "
        "other files by --credentials FILE\n"
    )
    hot = quickstart.chat("--tenant", "acme", "--temperature", "nan", "hello")
    assert hot.returncode == 1
    assert hot.stderr.startswith("inferengine chat: invalid_request: temperature: got nan; must be a finite number")
    nowhere = quickstart.chat("--tenant", "acme", "--deployment", "nope", "hello")
    assert nowhere.stderr == (
        f"inferengine chat: no credentials of tenant 'acme' in {quickstart.state.parent}/nope: is `inferengine up` running?; "
        "other files by --credentials FILE\n"
    )
    absent = quickstart.chat("--credentials", "/nonexistent.json", "hello")
    assert (absent.returncode, absent.stderr) == (2, "inferengine chat: /nonexistent.json: No such file or directory\n")
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
