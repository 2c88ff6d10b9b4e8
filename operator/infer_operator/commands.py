"""The operator's commands on one machine. Each takes its arguments and returns its exit code."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import msgspec

from infer_operator import spec, table
from infer_operator.backends import model_here, probe
from infer_operator.backends.local import HOST
from infer_operator.backends.state_dir import AlreadyRunningError, StateDir, StateDirError
from infer_operator.endpoints import PortsExhaustedError
from infer_operator.status import BAD_WHEN_TRUE, Status
from infer_operator.up import Options, StartError, Up
from infer_server.contract.state_home import state_home


def up(argv: list[str]) -> int:
    """Run a deployment file on this machine and follow its edits."""
    parser = argparse.ArgumentParser(prog="inferengine up", description=up.__doc__)
    parser.add_argument("-f", "--file", type=Path, required=True, help="the InferenceDeployment, YAML")
    parser.add_argument("--state-dir", type=Path, help="default: $XDG_STATE_HOME/inferengine/DEPLOYMENT")
    parser.add_argument(
        "--http-port", type=_port, help="/healthz, /readyz, /metrics; default: 9400, or the next free one"
    )
    args = parser.parse_args(argv)
    try:
        deployment = model_here.load(args.file)
    except spec.SpecError as error:
        return _fail("up", f"{args.file} is wrong:", *error.errors)
    name = deployment.metadata.name
    unused = spec.without_effect_here(deployment)
    if unused:
        _say(f"without effect on one machine: {', '.join(unused)}")
    state = StateDir(args.state_dir or state_home() / name)
    try:
        state.prepare()
        with state.locked():
            options = Options(args.file, deployment, state, args.http_port)
            return asyncio.run(Up(options, _say).run())
    except AlreadyRunningError as error:
        return _fail(
            "up", f"{name} is already running (process {error.pid}): edit its file, or stop that process first"
        )
    except (StartError, StateDirError, PortsExhaustedError, OSError) as error:
        return _fail("up", str(error))


def status(argv: list[str]) -> int:
    """Show how a deployment on this machine is doing."""
    parser = argparse.ArgumentParser(prog="inferengine status", description=status.__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="the deployment; needed where there are several")
    parser.add_argument("--state-dir", type=Path, help="state directory of the deployment, where `up` was given one")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    args = parser.parse_args(argv)
    try:
        state = _find(args.name, args.state_dir)
        known = state.read_as("status.json", Status)
        resource = state.resource()
    except (StateDirError, OSError) as error:
        return _fail("status", str(error))
    if known is None or resource is None:
        return _fail("status", f"{state.path}: nothing has been started there yet: inferengine up -f FILE")
    shown = _live(resource.deployment.metadata.name, state, known)
    if args.output == "json":
        print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
    else:
        print(_as_text(shown, known))
    return 0


def _find(name: str | None, directory: Path | None) -> StateDir:
    """Raises StateDirError that says what there is."""
    if directory is not None:
        return StateDir(directory)
    home = state_home()
    if name is not None:
        return StateDir(home / name)
    found = sorted(path.parent for path in home.glob("*/resource.json"))
    if len(found) == 1:
        return StateDir(found[0])
    if not found:
        raise StateDirError(f"no deployment in {home}: start one with inferengine up -f FILE, or give --state-dir")
    raise StateDirError(f"several deployments: give one of {', '.join(path.name for path in found)}")


def _live(name: str, state: StateDir, known: Status) -> dict[str, Any]:
    """What was reported last, and what is true at this moment."""
    owner = state.owner()
    port = int(known.metrics_url.rsplit(":", 1)[1].split("/")[0]) if known.metrics_url else None
    answer = probe.ask(HOST, port) if owner is not None and port is not None else None
    fields: dict[str, Any] = msgspec.to_builtins(known)
    processes = {"up": owner, **(known.processes or {})} if owner is not None else {}
    return {
        "name": name,
        "running": owner is not None,
        "ready": known.ready and answer is not None and answer.ready,
        **fields,
        "processes": processes,
    }


def _as_text(shown: dict[str, Any], known: Status) -> str:
    """Conditions are those of a running deployment; what they were before it was stopped is of no use now."""
    processes = ", ".join(f"{name} {pid}" for name, pid in shown["processes"].items()) or "none"
    parts = [
        f"{shown['name']}: {_state(shown, known)}; generation {known.observed_generation}; processes: {processes}",
        table.tenants(known),
        *([table.conditions(known)] if shown["running"] else []),
        table.places(known) if shown["running"] else "start it: inferengine up -f FILE",
    ]
    return "\n\n".join(parts)


def _state(shown: dict[str, Any], known: Status) -> str:
    if shown["ready"]:
        return "ready"
    if not shown["running"]:
        return "not running"
    wrong = {one.type for one in known.conditions if one.status != str(one.type not in BAD_WHEN_TRUE)}
    return "serving, but its newest edit is refused" if wrong == {"Accepted", "Ready"} else "running, not ready"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed is no reason to stop serving
        print(line, flush=True)


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}; must be an integer from 1 to 65535")
    return int(text)


def _fail(command: str, *lines: str) -> int:
    print(f"inferengine {command}: {lines[0]}", *(f"  {line}" for line in lines[1:]), sep="\n", file=sys.stderr)
    return 1
