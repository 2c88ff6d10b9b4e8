"""Starting, changing, dying and stopping: the processes of a pod and its endpoints."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infer_server.front.endpoint import FRONT_MAX_FDS, Endpoint

from .conftest import Key, Pod, Tenant, eventually, free_port, gone
from .test_endpoint import refused


def test_a_key_is_added_and_revoked_live(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    fronts = pod.fronts()
    acme.keys["second"] = second = Key.new()
    assert refused(pod, acme, second)
    pod.publish()
    eventually(lambda: not refused(pod, acme, second), "the new key is let in")

    staying, leaving = pod.client(acme), pod.client(acme, second)
    for client in (staying, leaving):
        client.send("REQ", "r", {"prompt": "hold"})
        assert client.receive()[0]["op"] == "ACK"
    del acme.keys["second"]
    pod.publish()
    eventually(lambda: pod.events("gone"), "the connection of the revoked key is dropped")
    assert "revoked" in pod.events("gone")[0]["reason"]
    assert refused(pod, acme, second)
    staying.send("CANCEL", "r")
    assert staying.receive()[1]["finish_reason"] == "cancelled"
    assert pod.fronts() == fronts


def test_two_keys_of_one_user_are_revoked_one_by_one(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    old, new = acme.keys["acme-key"], Key.new()
    both = {"port": acme.port, "users": {old.public: "ann", new.public: "ann"}}
    pod.tenants["acme"] = type("Both", (), {"name": "acme", "wish": both})()  # type: ignore[assignment]
    pod.publish()
    eventually(lambda: not refused(pod, acme, new), "the new key is let in")
    staying, leaving = pod.client(acme, new), pod.client(acme, old)
    for client in (staying, leaving):
        client.send("REQ", "r", {"prompt": "hold"})
        assert client.receive()[0]["op"] == "ACK"
    del both["users"][old.public]  # type: ignore[attr-defined]
    pod.publish()
    eventually(lambda: pod.events("gone"), "the old key's connection is dropped")
    assert staying.alive()
    assert len(pod.events("gone")) == 1


def test_a_key_that_is_none_is_named_and_the_others_are_served(pod: Pod) -> None:
    bad = Key("not Z85 " + "~" * 32, "")
    pod.tenants["acme"] = acme = Tenant("acme", free_port(), {"good": Key.new(), "bad": bad})
    pod.publish()
    assert pod.client(acme, acme.keys["good"]).ask("who") == "acme good"
    assert "not Z85" in eventually(lambda: pod.events("failed"), "the gateway is told")[0]["message"]


def test_a_killed_front_is_back_and_its_neighbour_undisturbed(pod: Pod) -> None:
    acme, globex = pod.add("acme", "globex")
    client, neighbour = pod.client(acme), pod.client(globex)
    neighbour.send("REQ", "r", {"prompt": "hold"})
    assert neighbour.receive()[0]["op"] == "ACK"
    for _ in range(3):
        assert client.ask("who") == "acme acme-key"
        before = set(pod.fronts())
        victim = next(pid for pid in before if pid != _front_of(pod, globex))
        os.kill(victim, signal.SIGKILL)
        eventually(lambda before=before: len(set(pod.fronts()) - before) == 1, "a new front")
        client = pod.client(acme)
    assert client.ask("who") == "acme acme-key"
    neighbour.send("CANCEL", "r")
    assert neighbour.receive()[1]["finish_reason"] == "cancelled"


def _front_of(pod: Pod, tenant: Tenant) -> int:
    """The process that logged that it serves the tenant's port."""
    lines = [line for line in (pod.folder / "log").read_text().splitlines() if line.endswith(f":{tenant.port}")]
    return int(lines[-1].split()[0])


def test_a_port_in_use_is_reported_and_taken_once_it_is_free(pod: Pod) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        pod.tenants["acme"] = acme = Tenant("acme", port, {"k": Key.new()})
        pod.publish()
        failed = eventually(lambda: pod.events("failed", tenant="acme"), "the gateway is told")
        assert failed[0]["message"] == f"can't listen on 127.0.0.1:{port}: Address already in use"
        (globex,) = pod.add("globex")
        assert pod.client(globex).ask("who") == "globex globex-key"
    assert pod.client(acme).ask("who") == "acme k"


def test_an_endpoint_moves_to_another_port_and_closes(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    assert pod.client(acme).ask("who") == "acme acme-key"
    old, acme.port = acme.port, free_port()
    pod.publish()
    assert pod.client(acme).ask("who") == "acme acme-key"
    assert not _listens(old)
    del pod.tenants["acme"]
    pod.publish()
    eventually(lambda: not _listens(acme.port), "the endpoint is closed")
    assert pod.fronts() == []


def test_two_tenants_swap_their_ports(pod: Pod) -> None:
    acme, globex = pod.add("acme", "globex")
    acme.port, globex.port = globex.port, acme.port
    pod.publish()
    eventually(lambda: not refused(pod, acme, acme.keys["acme-key"]), "acme is served where globex was")
    eventually(lambda: not refused(pod, globex, globex.keys["globex-key"]), "globex is served where acme was")
    assert pod.client(acme).ask("who") == "acme acme-key"
    assert pod.client(globex).ask("who") == "globex globex-key"


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_killed_gateway_is_back_with_all_endpoints_and_an_engine(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    client = pod.client(acme)
    client.send("REQ", "r", {"prompt": "hold"})
    assert client.receive()[0]["op"] == "ACK"
    engine = pod.pid_of("engine")
    os.kill(pod.pid_of("gateway"), signal.SIGKILL)
    header, err = client.receive()
    assert (header["op"], header["rid"], err["code"]) == ("ERR", "r", "unavailable")
    eventually(lambda: len(pod.events("link", kind="engine")) == 2, "a second engine is linked")
    assert gone(engine)
    pod.await_port(acme)
    assert pod.client(acme).ask("who") == "acme acme-key"


def test_a_killed_engine_is_started_again_alone(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    gateway, fronts = pod.pid_of("gateway"), pod.fronts()
    os.kill(pod.pid_of("engine"), signal.SIGKILL)
    eventually(lambda: len(pod.events("link", kind="engine")) == 2, "a second engine is linked")
    assert (pod.pid_of("gateway"), pod.fronts()) == (gateway, fronts)
    assert pod.client(acme).ask("who") == "acme acme-key"


def test_sigterm_drains_and_ends_every_process(pod: Pod) -> None:
    acme, _ = pod.add("acme", "globex")
    client = pod.client(acme)
    client.send("REQ", "r", {"prompt": "hold"})
    assert client.receive()[0]["op"] == "ACK"
    children = pod.children()
    assert len(children) == 4
    assert pod.process is not None
    pod.process.send_signal(signal.SIGTERM)
    eventually(lambda: "stopping" in (pod.folder / "log").read_text(), "the end begins")
    late = pod.client(acme)
    late.send("PING")
    assert client.alive(), "who is connected is served to the end"
    client.send("CANCEL", "r")
    assert client.receive()[1]["finish_reason"] == "cancelled"
    assert pod.process.wait(20) == 0
    assert pod.events("drained")
    assert not late.socket.poll(0), "nobody is let in any more"
    assert all(gone(pid) for pid in children)


def test_a_second_signal_ends_everything_at_once(pod: Pod) -> None:
    (acme,) = pod.add("acme")
    client = pod.client(acme)
    client.send("REQ", "r", {"prompt": "hold"})
    assert client.receive()[0]["op"] == "ACK"
    children = pod.children()
    assert pod.process is not None
    pod.process.send_signal(signal.SIGINT)
    eventually(lambda: "stopping" in (pod.folder / "log").read_text(), "the end begins")
    pod.process.send_signal(signal.SIGINT)
    assert pod.process.wait(5) == 1
    assert all(gone(pid) for pid in children)


def test_no_process_outlives_a_killed_supervisor(pod: Pod) -> None:
    pod.add("acme")
    children = pod.children()
    assert pod.process is not None
    pod.process.kill()
    pod.process.wait()
    eventually(lambda: all(gone(pid) for pid in children), "all children end")


def test_a_front_writes_no_core_file_and_no_key_to_the_log(pod: Pod) -> None:
    acme, globex = pod.add("acme", "globex")
    assert pod.client(acme).ask("who") == "acme acme-key"
    assert pod.client(globex).ask("who") == "globex globex-key"
    for pid in pod.fronts():  # they serve, so they have set their limits
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        assert next(line for line in limits if line.startswith("Max core file size")).split()[4] == "0"
        open_files = next(line for line in limits if line.startswith("Max open files")).split()
        assert int(open_files[3]) <= FRONT_MAX_FDS, "strangers' connections must not take all memory"
    assert refused(pod, acme, globex.keys["globex-key"])
    log = (pod.folder / "log").read_text()
    keys = [pod.server_key, *acme.keys.values(), *globex.keys.values()]
    assert not any(key.secret in log for key in keys)


def test_a_front_that_answers_nonsense_is_not_kept() -> None:
    """Nobody could revoke a key in it any more."""
    endpoint = Endpoint("acme", 1, {})
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    endpoint.control = mine
    with theirs:
        theirs.send(b"nonsense")
        endpoint.read_answer()
    assert endpoint.control is None
    assert endpoint.keys_deadline is not None


HARDENED = """
import os, sys
from infer_server.front.process import fork, harden
kept, other = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
def child():
    harden({kept}, 192 << 20, 100)
    os.fstat(kept)
    try:
        os.fstat(other)
    except OSError:
        return
    raise RuntimeError("still open")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(fork(child), 0)[1]))
"""


def test_a_front_keeps_only_the_descriptors_it_needs() -> None:
    result = subprocess.run([sys.executable, "-c", HARDENED], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("content", ["", "too short\n"])
def test_a_bad_server_key_is_reported(pod: Pod, content: str) -> None:
    (pod.folder / "server.key").write_text(content)
    pod.tenants["acme"] = Tenant("acme", free_port(), {"k": Key.new()})
    pod.publish()
    failed = eventually(lambda: pod.events("failed", tenant="acme"), "the gateway is told")
    assert "its front ended 3 times" in failed[0]["message"]
    (pod.folder / "server.key").write_text(pod.server_key.secret)
    assert pod.client(pod.tenants["acme"]).ask("who") == "acme k"
