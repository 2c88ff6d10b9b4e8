import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints, version

import pytest

from infer_server import commands


def echo(argv: list[str]) -> int:
    """Say what was given.

    More than that is said by --help.
    """
    print(argv)
    return 7


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands: one of this module, one whose package's dependencies are missing."""
    sys.modules["installed_commands"] = sys.modules[__name__]
    found = EntryPoints(
        [
            EntryPoint("echo", "installed_commands:echo", commands.GROUP),
            EntryPoint("broken", "no_such_package.commands:run", commands.GROUP),
        ]
    )
    monkeypatch.setattr(commands, "entry_points", lambda group: found.select(group=group))


def test_a_command_gets_its_arguments_and_gives_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["echo", "a", "--b"]) == 7
    assert capsys.readouterr().out == "['a', '--b']\n"


def test_help_lists_commands_by_the_first_line_of_their_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert "echo       Say what was given." in output
    assert "More than that" not in output
    assert "no_such_package" in output  # and what its command lacks
    assert commands.main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out == f"inferengine {version('inferengine')}\n"


def test_an_unknown_command_is_refused_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["ecko"]) == 2
    assert "'ecko'; there are broken, echo" in capsys.readouterr().err


def test_a_command_whose_dependencies_are_missing_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["broken"]) == 2
    assert "needs no_such_package" in capsys.readouterr().err


def test_the_dispatcher_itself_loads_nothing_heavy() -> None:
    script = (
        "import sys, infer_server.commands; "
        "sys.exit(bool({'torch', 'zmq', 'redis', 'aiohttp', 'msgspec', 'kopf'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=100).returncode == 0
