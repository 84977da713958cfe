"""What the command line asks of its process, and the answers of one that is alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

Command = Callable[[argparse.Namespace], int]

#: Prints each line of a message on standard error.
Complain = Callable[[str], None]


class Rank(Protocol):
    """One of the processes that share a command."""

    @property
    def prints(self) -> bool:
        """Whether its standard output is that of the command."""

    def command(self, options: argparse.Namespace) -> Command:
        """What this process does of the command that was asked for."""

    def failed(self, message: str, code: int, complain: Complain, committed: Sequence[Path | str] = ()) -> int:
        """Say why the command ends, once for all processes; return the exit code of the one that ended first."""

    def ended(self, code: int) -> int:
        """Let the others know that this process is done, and return the exit code."""


class Alone:
    """The only process of a command."""

    prints = True

    def command(self, options: argparse.Namespace) -> Command:
        command: Command = options.command
        return command

    def failed(self, message: str, code: int, complain: Complain, committed: Sequence[Path | str] = ()) -> int:  # noqa: ARG002
        complain(message)
        return code

    def ended(self, code: int) -> int:
        return code


ALONE: Rank = Alone()
