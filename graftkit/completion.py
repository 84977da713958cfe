"""What a shell needs to complete graftkit's commands, options and paths; shtab writes it from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from graftkit.usage import commands_of

SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")

#: Metavars of arguments that take a path.
PATHS = frozenset({"RECIPE", "MODEL", "A", "B", "DIR", "FILE", "OUTPUT"})


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script with which ``shell`` completes every command, its options, their choices, and paths."""
    import shtab

    for action in _actions(parser):
        if (action.metavar or action.dest.upper()) in PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield every argument of a parser and of its commands."""
    yield from parser._actions  # noqa: SLF001 - argparse shows them nowhere else
    for command in commands_of(parser).values():
        yield from command._actions  # noqa: SLF001
