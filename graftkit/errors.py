"""Every error that graftkit raises on purpose, each with the exit code that the command line gives it.

::

    GraftkitError
    ├── RecipeError            2   the recipe or the command line is wrong
    ├── InputRejected          3   the checkpoint cannot be operated on
    │   └── NotThere           3   what a path or a hub id names is not there
    ├── VerificationFailed     4   the result does not keep its promise; nothing was committed
    ├── StorageFault           5   reading or writing failed; nothing was committed
    ├── Locked                 6   another run holds the output
    └── CommittedWithWarning   7   the output is in place, but something behind that failed: durability, clean-up, printing, an upload

A command that fails in any other way ends with 70, and says that this is graftkit's own fault.

A message is one line: the file, the place in it, what was found, what to do. Whatever comes from a file is escaped by
:func:`printable` before it reaches a terminal.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterator


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


class NotAsStored(InputRejected):
    """A class changes what it has loaded, as Youtu's does with the row of the padding id: its files are another model than it runs."""


class NotThere(InputRejected):
    """What a path or a hub id names is not there."""


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


#: What the operating system answers where neither the recipe nor the input is to blame, whoever was told so.
_SYSTEM = frozenset(
    {
        errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.ENOBUFS,
        errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.EINTR,
    }
)  # fmt: skip

#: How Python and torch say that no thread could be started.
_NO_THREADS = ("can't start new thread", "Invalid thread pool")

#: How libraries in Rust and torch spell the number of such an answer, before and behind its words.
_NUMBER = re.compile(r"\(os error (\d+)\)|Error code (\d+) \(")
_SPELLED = {f"{os.strerror(number)} ({number})": number for number in _SYSTEM}


def system_fault(error: BaseException) -> str | None:
    """Return in a line how the system failed underneath ``error``: memory, threads, disk, open files; None where it did not.

    Libraries wrap such failures in exceptions that blame the file that they were reading.
    """
    for cause in _causes(error):
        if isinstance(cause, MemoryError):
            return "not enough memory"
        if isinstance(cause, RuntimeError) and any(words in str(cause) for words in _NO_THREADS):
            return "no thread could be started; allow more processes (ulimit -u)"
        number = cause.errno if isinstance(cause, OSError) else None
        number = _spelled_number(str(cause)[:10_000]) if number is None else number
        if number in _SYSTEM:
            name = getattr(cause, "filename", None)
            what = f"{printable(name)}: {os.strerror(number)}" if name else os.strerror(number)
            return what if cause is error or name else f"{what}, seen as: {printable(error)}"
    return None


def require_sound_system(error: BaseException) -> None:
    """Blame nobody's files where it was the system that failed underneath ``error``.

    Raises:
        StorageFault: it was.
    """
    if fault := system_fault(error):
        raise StorageFault(f"{fault}; nothing was written") from error


def _spelled_number(text: str) -> int | None:
    if found := _NUMBER.search(text):
        return int(found[1] or found[2])
    return next((number for words, number in _SPELLED.items() if words in text), None)


def leads_nowhere(error: BaseException) -> bool:
    """Whether ``error`` says, or was raised from one that says, that nothing is where a path leads.

    What was only being handled meanwhile, such as a search that goes on elsewhere, does not count.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, NotThere | FileNotFoundError):
        cause = cause.__cause__
    return cause is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and everything that it was raised from or while handling."""
    waiting, seen = [error], set()
    while waiting:
        found = waiting.pop(0)
        if id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [cause for cause in (found.__cause__, found.__context__) if cause is not None]


#: The longest line that is printed of anything, in characters.
LINE = 2000


def shortened(text: str, length: int = LINE) -> str:
    """``text`` in at most ``length`` characters: what is too long loses its middle."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def printable(text: object) -> str:
    """Return ``text`` with every control and other unprintable character escaped, fit for a terminal.

    Tensor names, tokens and paths come from files that nobody has checked; an escape sequence in one must not act.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


def plural(value: int, noun: str) -> str:
    """``1 layer``, ``2 layers``, ``1,000 layers``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def spelled(value: object) -> str:
    """A value that nobody has checked as Python writes it, fit for a terminal, however long or deep it is."""
    try:
        return shortened(printable(repr(value)), 200)
    except RecursionError:
        return "something nested without end"


def few(names: Collection[str]) -> str:
    """The first names of many, fit for a terminal."""
    ordered = sorted(names)
    return printable(", ".join(ordered[:4]) + (f", … ({len(ordered)} in all)" if len(ordered) > 4 else ""))
