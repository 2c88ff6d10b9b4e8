"""`inferengine up` and `status` as a user runs them: real processes, a small model with random weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import zmq
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from infer_engine.model.fetch.digest import content_digest
from infer_operator import commands, up
from infer_operator.backends.state_dir import StateDir
from infer_operator.reconcile import mint_tenant
from infer_server.client import AuthenticationFailed, Client, ConnectionLost

SECONDS = 120.0
"""Every wait ends by then; loading torch on a busy machine takes a while."""

DEPLOYMENT = """\
apiVersion: inferengine.dev/v1alpha1
kind: InferenceDeployment
metadata:
  name: small
spec:
  model: {{uri: {model}, name: small}}
  engine: {{device: cpu, maxBatchSize: 4, maxCacheTokens: 512}}
  tenants:
    - name: acme
      quota: {{requestsPerMinute: 100}}
    - name: globex
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers whose tokens are bytes."""
    directory = tmp_path_factory.mktemp("model")
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=256,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


class Deployment:
    """A running `up`, its file and its state directory."""

    def __init__(self, directory: Path, text: str) -> None:
        self.file = directory / "deployment.yaml"
        self.state = directory / "state"
        self.output = directory / "output"
        self.file.write_text(text)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "infer_operator", "up", "-f", str(self.file), "--state-dir", str(self.state)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        return self.process

    def edit(self, old: str, new: str) -> None:
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))

    def said(self) -> str:
        return self.output.read_text()

    def status(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "infer_operator", "status", "--output", "json", "--state-dir", str(self.state)]
        answer = subprocess.run(command, capture_output=True, check=False)
        return dict(json.loads(answer.stdout)) if answer.returncode == 0 else {}

    def status_text(self) -> str:
        command = [sys.executable, "-m", "infer_operator", "status", "--state-dir", str(self.state)]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process is not None
            running = self.process.poll() is None
            assert running, f"ended, waiting for {what}; it said:\n{self.said()}"
            assert time.monotonic() < deadline, f"still waiting for {what}; it said:\n{self.said()}"
            time.sleep(0.1)

    def wait_said(self, text: str) -> None:
        self.wait(lambda: text in self.said(), repr(text))

    def processes(self) -> list[int]:
        """Everything alive that was started for this state directory, `up` itself not counted."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(self.state).encode() in command and int(entry.name) != (self.process and self.process.pid):
                found.append(int(entry.name))
        return found

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="ie-up-") as directory:
        deployment = Deployment(Path(directory), DEPLOYMENT.format(model=model))
        deployment.start()
        try:
            deployment.wait_said("metrics: http://")
            yield deployment
        finally:
            deployment.end()


@pytest.fixture
def fresh(model: Path) -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="ie-up-") as directory:
        deployment = Deployment(Path(directory), DEPLOYMENT.format(model=model))
        yield deployment
        deployment.end()


@pytest.fixture
def web(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The model's directory on a web server, and an empty cache for what comes from there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(model.parent)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/{model.name}"
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


def ask(deployment: Deployment, tenant: str) -> int:
    with Client.from_credentials(deployment.state / "credentials" / f"{tenant}.json") as client:
        return client.generate("Hello", max_tokens=3, temperature=0.0, timeout=SECONDS).usage.prompt_tokens


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_serves_and_says_how(running: Deployment) -> None:
    said = running.said()
    status = running.status()
    for tenant, quota in (("acme", "100 requests/min"), ("globex", "none")):
        credentials = running.state / "credentials" / f"{tenant}.json"
        endpoint = json.loads(credentials.read_bytes())["endpoint"]
        (line,) = [line for line in said.splitlines() if line.startswith(f"{tenant} ")]
        assert line.split(maxsplit=2) == [tenant, endpoint, quota]
        assert ask(running, tenant) == 5
    assert f"credentials: {running.state}/credentials/TENANT.json\nmetrics: {status['metricsUrl']}\n" in said
    assert said.endswith(f"talk to it: inferengine chat --tenant acme --state-dir {running.state}\n")


def test_status_as_json(running: Deployment) -> None:
    status = running.status()
    assert (status["name"], status["running"], status["ready"]) == ("small", True, True)
    assert {condition["type"]: condition["status"] for condition in status["conditions"]} == {
        "Accepted": "True",
        "Available": "True",
        "TenantsProgrammed": "True",
        "QuotaStoreReachable": "True",
        "Degraded": "False",
        "Ready": "True",
    }
    assert running.process is not None
    assert status["processes"]["up"] == running.process.pid
    assert {"store", "pod"} < status["processes"].keys()
    assert [tenant["name"] for tenant in status["tenants"]] == ["acme", "globex"]
    assert "ecret" not in json.dumps(status)


def test_status_as_a_table(running: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.status(["--state-dir", str(running.state)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("small: ready; generation")
    assert "QuotaStoreReachable  True" in shown


def test_a_second_up_is_refused(running: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.up(["-f", str(running.file), "--state-dir", str(running.state)]) == 1
    assert running.process is not None
    assert f"small is already running (process {running.process.pid})" in capsys.readouterr().err


def test_edits_of_tenants_restart_nothing(running: Deployment) -> None:
    pod = running.status()["processes"]["pod"]
    running.edit("    - name: globex\n", "    - name: globex\n    - name: third\n")
    running.wait_said("tenant third added: tcp://127.0.0.1:")
    running.wait(lambda: running.status()["ready"], "the third tenant's endpoint")
    assert ask(running, "third") == 5
    port = int(json.loads((running.state / "credentials/third.json").read_bytes())["endpoint"].rsplit(":", 1)[1])

    running.edit("    - name: third\n", "")
    running.wait_said("tenant third removed")
    running.wait(lambda: not accepts(port), "its endpoint to close")
    assert not (running.state / "credentials/third.json").exists()

    running.edit("requestsPerMinute: 100", "requestsPerMinute: 200")
    running.wait(lambda: running.status()["tenants"][0]["quota"] == {"requestsPerMinute": 200}, "the new quota")
    assert running.status()["processes"]["pod"] == pod


def test_a_tenant_brings_its_own_key(running: Deployment) -> None:
    """Live: who has the old key is disconnected at once, whoever has the new one is served, no process restarts."""
    pod, file = running.status()["processes"]["pod"], running.state / "credentials/globex.json"
    secret_key_file = running.state.parent / "globex.key"
    public, secret = zmq.curve_keypair()
    secret_key_file.write_bytes(secret)

    def is_refused(client: Client) -> bool:
        try:
            client.generate("Hello", max_tokens=3, timeout=SECONDS)
        except (AuthenticationFailed, ConnectionLost):
            return True
        return False

    with Client.from_credentials(file) as before:
        before.generate("Hello", max_tokens=3, timeout=SECONDS)
        own = f"    - name: globex\n      auth: {{publicKeys: ['{public.decode()}']}}\n"
        running.edit("    - name: globex\n", own)
        running.wait(lambda: is_refused(before), "the connection of the old key to end")
        running.wait_said("tenant globex has other keys: tcp://127.0.0.1:")
        assert "ecret" not in file.read_text()
        with Client.from_credentials(file, secret_key_file=secret_key_file) as after:
            running.wait(lambda: not is_refused(after), "its own key to be let in")
            running.edit(own, "    - name: globex\n")
            running.wait(lambda: is_refused(after), "its own key to be gone")
    assert ask(running, "globex") == 5
    assert running.status()["processes"]["pod"] == pod


def test_a_wrong_edit_changes_nothing(running: Deployment) -> None:
    before = running.file.read_text()
    running.edit("maxBatchSize: 4", "maxBatchSize: 0")
    running.wait_said("spec.engine.maxBatchSize: got 0; must be an integer >= 1")
    running.wait(lambda: running.status()["conditions"][0]["status"] == "False", "the condition Accepted")
    assert running.status_text().startswith("small: serving, but its newest edit is refused; generation ")
    assert ask(running, "acme") == 5
    running.file.write_text(before.replace("name: small\nspec", "name: other\nspec"))
    running.wait_said('metadata.name: got "other"; must stay "small" while it runs')
    running.file.unlink()
    running.wait_said("cannot be read: No such file or directory")
    running.file.write_text(before)
    running.wait_said(f"{running.file} is as applied: nothing to change")
    running.wait(lambda: running.status()["ready"], "the good file to be accepted again")


def test_a_pod_that_serves_is_not_stopped_for_a_model_that_is_not_there(running: Deployment) -> None:
    before, pod = running.file.read_text(), running.status()["processes"]["pod"]
    running.edit("uri: /", "uri: /no/such/place/")
    running.wait_said("spec.model.uri: /no/such/place/")
    assert ask(running, "acme") == 5
    running.file.write_text(before)
    running.wait(lambda: running.status()["ready"], "the good file to be accepted again")
    assert running.status()["processes"]["pod"] == pod


def test_a_restart_in_vain_says_why(running: Deployment) -> None:
    before = running.file.read_text()
    running.edit("maxCacheTokens: 512", "maxCacheTokens: 512, kvDim: 7")
    running.wait_said("the pod tries in vain to become ready; the end of ")
    why = "kv_dim: got 7; the model"
    assert why in running.said()
    running.wait(
        lambda: any(why in one["message"] for one in running.status()["conditions"]), "the reason in the status"
    )
    running.file.write_text(before)
    running.wait(lambda: running.status()["ready"], "the good file to be served again")
    assert ask(running, "acme") == 5


def test_a_killed_store_comes_back(running: Deployment) -> None:
    store = running.status()["processes"]["store"]
    os.kill(store, signal.SIGKILL)
    running.wait_said("the store ended (exit code -9)")
    running.wait(lambda: running.status()["processes"].get("store") not in (None, store), "another store")
    running.wait(lambda: running.status()["ready"], "readiness")
    assert ask(running, "acme") == 5


def test_engine_settings_restart_the_pod(running: Deployment) -> None:
    before = running.status()
    running.edit("maxBatchSize: 4", "maxBatchSize: 8")
    running.wait_said("model or engine settings changed: restarting the pod")
    running.wait(
        lambda: running.status()["processes"].get("pod") not in (None, before["processes"]["pod"]), "a new pod"
    )
    running.wait(lambda: running.status()["ready"], "the new pod")
    after = running.status()
    assert after["observedGeneration"] > before["observedGeneration"]
    assert after["processes"]["store"] == before["processes"]["store"]
    assert ask(running, "acme") == 5


def test_sigterm_drains_and_leaves_nothing(running: Deployment) -> None:
    """The last of those that share one run."""
    assert running.process is not None
    assert len(running.processes()) >= 4
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(SECONDS) == 0
    assert running.processes() == []
    assert running.said().endswith("stopped\n")
    status = running.status()
    assert (status["running"], status["ready"], status["processes"]) == (False, False, {})
    assert running.status_text().startswith("small: not running; ")
    assert "Ready" not in running.status_text()


def test_nothing_outlives_a_killed_up(fresh: Deployment) -> None:
    process = fresh.start()
    fresh.wait_said("loading")
    fresh.wait(lambda: len(fresh.processes()) >= 4, "the store and the pod's processes")
    process.kill()
    process.wait(SECONDS)
    deadline = time.monotonic() + SECONDS
    while fresh.processes():
        assert time.monotonic() < deadline, fresh.processes()
        time.sleep(0.05)


def test_ctrl_c_while_the_model_loads(fresh: Deployment) -> None:
    process = fresh.start()
    fresh.wait_said("loading")
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert fresh.processes() == []


def test_a_model_that_is_missing(fresh: Deployment, model: Path) -> None:
    fresh.edit(str(model), "/no/such/model")
    process = fresh.start()
    assert process.wait(SECONDS) == 1
    assert fresh.said() == (
        f"inferengine up: {fresh.file} is wrong:\n  spec.model.uri: /no/such/model: no such file or directory; "
        "give a directory with config.json and .safetensors files, or a .gguf file\n"
    )
    assert fresh.processes() == []


@pytest.mark.parametrize("package", ["not_installed", "__main__", "a.b"])
def test_a_model_in_a_package_that_is_missing(
    fresh: Deployment, model: Path, package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh.edit(str(model), f"package://{package}/model.gguf")
    assert commands.up(["-f", str(fresh.file), "--state-dir", str(fresh.state)]) == 1
    assert f"no Python package '{package}' is installed; install it, or give another model" in capsys.readouterr().err


def test_a_model_that_is_truncated(fresh: Deployment, model: Path) -> None:
    copy = fresh.file.parent / "copy"
    shutil.copytree(model, copy)
    weights = copy / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    fresh.edit(str(model), str(copy))
    assert fresh.start().wait(SECONDS) == 1
    assert "inferengine up: the pod did not start" in fresh.said()
    assert "stop" not in fresh.said()  # nothing was asked to stop
    assert f"{weights}: has {weights.stat().st_size} bytes where its header says" in fresh.said()
    assert "fetch the model again" in fresh.said()
    assert fresh.processes() == []


def test_a_model_from_a_web_server_that_is_the_right_one(fresh: Deployment, model: Path, web: str) -> None:
    fresh.edit(f"uri: {model}", f"uri: {web}, digest: '{content_digest(model)}'")
    fresh.start()
    fresh.wait_said("metrics: http://")
    assert ask(fresh, "acme") == 5


def test_a_model_that_is_not_the_right_one(fresh: Deployment, model: Path, web: str) -> None:
    wanted = "sha256:" + "0" * 64
    fresh.edit(f"uri: {model}", f"uri: {web}, digest: '{wanted}'")
    assert fresh.start().wait(SECONDS) == 1
    assert f"{web}: its digest is {content_digest(model)}, model.digest asks for {wanted}" in fresh.said()
    assert fresh.processes() == []


def test_a_model_in_a_claim(fresh: Deployment, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh.edit(str(model), "pvc://models/llama")
    assert commands.up(["-f", str(fresh.file), "--state-dir", str(fresh.state)]) == 1
    assert "only a cluster has claims; on this machine give the model's directory" in capsys.readouterr().err


def test_a_kv_dim_that_is_not_the_model_s(fresh: Deployment, model: Path) -> None:
    fresh.edit("maxCacheTokens: 512", "maxCacheTokens: 512, kvDim: 7")
    assert fresh.start().wait(SECONDS) == 1
    assert f"kv_dim: got 7; the model {model.name} has 32 (leave it out to read it)" in fresh.said()
    assert fresh.processes() == []


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_an_http_port_in_use(fresh: Deployment, listener: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = commands.up(["-f", str(fresh.file), "--state-dir", str(fresh.state), "--http-port", str(listener)])
    assert code == 1
    assert capsys.readouterr().err == (
        f"inferengine up: --http-port: port {listener} is in use; give another, or none to have one chosen\n"
    )


def test_a_tenant_s_port_in_use(
    fresh: Deployment, listener: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(fresh.state)
    state.prepare()
    state.write_as("tenants/acme.json", mint_tenant("acme", listener))
    monkeypatch.setattr(up, "PORT_WAIT_SECONDS", 0.0)
    assert commands.up(["-f", str(fresh.file), "--state-dir", str(fresh.state)]) == 1
    captured = capsys.readouterr()
    assert f"waiting for port {listener} of tenant acme: another program has it\n" in captured.out
    assert captured.err.startswith(
        f"inferengine up: tenant acme: its port {listener} is in use by another program; stop that program, or remove "
    )
    assert fresh.processes() == []


def test_a_state_directory_whose_path_is_too_long(fresh: Deployment) -> None:
    fresh.state = fresh.state / ("x" * 100)
    assert fresh.start().wait(SECONDS) == 1
    assert "choose a shorter state directory (--state-dir, or XDG_STATE_HOME)" in fresh.said()
    assert "Traceback" not in fresh.said()


def test_a_wrong_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(DEPLOYMENT.format(model="/m").replace("requestsPerMinute: 100", "requestsPerMinute: -3"))
    assert commands.up(["-f", str(file)]) == 1
    assert capsys.readouterr().err == (
        f"inferengine up: {file} is wrong:\n"
        "  spec.tenants[0].quota.requestsPerMinute: got -3; must be an integer >= 1\n"
    )


def test_status_says_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    home = tmp_path / "inferengine"
    assert commands.status([]) == 1
    assert f"no deployment in {home}" in capsys.readouterr().err
    for name in ("one", "two"):
        (home / name).mkdir(parents=True)
        (home / name / "resource.json").write_text("{}")
    assert commands.status([]) == 1
    assert "several deployments: give one of one, two" in capsys.readouterr().err
    assert commands.status(["three"]) == 1
    assert "nothing has been started there yet" in capsys.readouterr().err


def test_two_deployments_started_at_once_get_different_ports(fresh: Deployment, model: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ie-up-") as directory:
        other = Deployment(Path(directory), DEPLOYMENT.format(model=model))
        for deployment in (fresh, other):
            deployment.start()
        try:
            for deployment in (fresh, other):
                deployment.wait_said("loading")
            files = [*fresh.state.glob("credentials/*.json"), *other.state.glob("credentials/*.json")]
            assert len({json.loads(file.read_bytes())["endpoint"] for file in files}) == 4
        finally:
            for deployment in (fresh, other):
                deployment.end()
