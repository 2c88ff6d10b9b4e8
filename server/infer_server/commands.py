"""The `inferengine` command: finds what each installed package offers, and hands over.

Commands are entry points of the group `inferengine.commands`; each is a function from its arguments to an exit status. Only the
chosen one is imported, but for --help, which shows the first line of each one's docstring.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version

GROUP = "inferengine.commands"
EXIT_USAGE = 2

Command = Callable[[list[str]], int]


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(commands))
        return 0 if arguments else EXIT_USAGE
    if arguments[0] in ("-V", "--version"):
        print(f"inferengine {version('inferengine')}")
        return 0
    entry = commands.get(arguments[0])
    if entry is None:
        print(f"inferengine: no command {arguments[0]!r}; there are {', '.join(sorted(commands))}", file=sys.stderr)
        return EXIT_USAGE
    try:
        command: Command = entry.load()
    except ModuleNotFoundError as error:
        print(f"inferengine {entry.name}: {_missing(entry, error)}", file=sys.stderr)
        return EXIT_USAGE
    return command(arguments[1:])


def usage(commands: dict[str, EntryPoint]) -> str:
    lines = ["usage: inferengine COMMAND [ARGUMENT ...]", "       inferengine --version", "", "Commands:"]
    for name, entry in sorted(commands.items()):
        lines.append(f"  {name:<10} {_summary(entry)}")
    return "\n".join([*lines, "", "`inferengine COMMAND --help` says more."])


def _summary(entry: EntryPoint) -> str:
    try:
        documentation = entry.load().__doc__ or ""
    except ModuleNotFoundError as error:
        return f"({_missing(entry, error)})"
    return documentation.strip().partition("\n")[0]


def _missing(entry: EntryPoint, error: ModuleNotFoundError) -> str:
    return f"needs {error.name}, which is not installed: install inferengine[all]"


if __name__ == "__main__":
    sys.exit(main())
