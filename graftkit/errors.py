"""Every error that graftkit raises on purpose, each with the exit code that the command line gives it.

::

    GraftkitError
    ├── RecipeError            2   the recipe or the command line is wrong
    ├── InputRejected          3   the checkpoint cannot be operated on
    ├── VerificationFailed     4   the result does not keep its promise; nothing was committed
    ├── StorageFault           5   reading or writing failed; nothing was committed
    ├── Locked                 6   another run holds the output
    └── CommittedWithWarning   7   the output is in place, but its durability or the clean-up failed

A message is one line: the file, the place in it, what was found, what to do. Whatever comes from a file is escaped by
:func:`printable` before it reaches a terminal.
"""

from __future__ import annotations

from collections.abc import Collection


class GraftkitError(Exception):
    """Base of all errors that end a command with one line and an exit code."""

    exit_code = 1


class RecipeError(GraftkitError):
    """The recipe or the command line is wrong. Holds one problem per line, in the order of the recipe's lines.

    An operation raises it without a place, at most with the ``field`` of each problem; planning adds the place.
    """

    exit_code = 2

    def __init__(self, problems: str | list[str], *, field: str | list[str] = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.fields = [field] * len(self.problems) if isinstance(field, str) else field
        super().__init__("\n".join(self.problems))

    def in_operation(self, place: int, op: str) -> RecipeError:
        """The same error with its place in the recipe: operation number ``place``, and the field where one is to blame."""
        where = [f"operations.{place}.{field}" if field else f"operations.{place}: {op}" for field in self.fields]
        return RecipeError([f"{one}: {problem}" for one, problem in zip(where, self.problems, strict=True)])


class InputRejected(GraftkitError):
    """The source checkpoint cannot be operated on: malformed, unsafe, or not supported, and the message says which."""

    exit_code = 3


class VerificationFailed(GraftkitError):
    """The written checkpoint does not keep its promise. Nothing was committed."""

    exit_code = 4


class StorageFault(GraftkitError):
    """Reading or writing failed. Nothing was committed."""

    exit_code = 5


class Locked(GraftkitError):
    """Another run holds the output."""

    exit_code = 6


class CommittedWithWarning(GraftkitError):
    """The output is in place and whole, but making it durable or cleaning up behind it failed."""

    exit_code = 7


def printable(text: object) -> str:
    """Return ``text`` with every control and other unprintable character escaped, fit for a terminal.

    Tensor names, tokens and paths come from files that nobody has checked; an escape sequence in one must not act.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def plural(value: int, noun: str) -> str:
    """``1 layer``, ``2 layers``, ``1,000 layers``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def few(names: Collection[str]) -> str:
    """The first names of many, fit for a terminal."""
    ordered = sorted(names)
    return printable(", ".join(ordered[:4]) + (f", … ({len(ordered)} in all)" if len(ordered) > 4 else ""))
