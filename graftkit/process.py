"""The command's own process: where it prints, how signals end it, and that libraries keep quiet.

What is printed never decides what is done. A reader that leaves, a full disk behind standard output and an encoding without a
character change no exit code but where the output itself was asked for and got lost.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import logging
import os
import select
import signal
import sys
import threading
import warnings
from types import FrameType
from typing import Any, TextIO

from graftkit.checkpoint.signals import STOPPING

#: New objects before Python's collector of cycles looks for garbage. Libraries make a million objects while they are imported, all of
#: which stay, and at Python's own value walking over them took a sixth of `verify`.
COLLECT_EVERY = 50_000


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to stop; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Pipe(io.FileIO):
    """A file descriptor for printing that never fails: the first error is noted, and what follows is dropped."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        while self.error is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.error = error
            else:
                if written is not None:
                    return written
                select.select([], [self], [])  # somebody made it non-blocking
        return len(data)


def require_threads() -> None:
    """Start as many threads as libraries will, and end them: OpenMP ends the whole process, without a word, where it cannot.

    Raises:
        RuntimeError: one could not be started.
    """
    done = threading.Event()
    threads = []
    try:
        for _ in range(os.cpu_count() or 1):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            threads.append(thread)
    finally:
        done.set()
        for thread in threads:
            thread.join()


class Process:
    """What is set up once, before a command runs. With ``debug`` libraries may print, and tracebacks show."""

    def __init__(self, *, debug: bool) -> None:
        self._stopped = False
        _open_missing_descriptors()
        self._out = _stream(sys.stdout, 1)
        self._err = _stream(sys.stderr, 2 if debug else os.dup(2))
        sys.stdout, sys.stderr = self._out, self._err
        if not debug:
            _quiet_libraries()
        gc.set_threshold(COLLECT_EVERY)
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._stop)

    def _stop(self, number: int, _: FrameType | None) -> None:
        """Unwind once; a second signal would only disturb the clean-up."""
        if not self._stopped:
            self._stopped = True
            raise Interrupted(number)

    def lost_output(self) -> OSError | None:
        """Why standard output could not be written whole; None where it was, or where its reader left."""
        with contextlib.suppress(ValueError):
            self._out.flush()
        error = _pipe_of(self._out).error
        return None if error is None or error.errno == errno.EPIPE else error

    def finish(self) -> None:
        """Let nothing change the exit code from here on; output that nobody took by now is dropped."""
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)

    def drop_output(self) -> None:
        """Print no more: whoever reads may have stopped reading."""
        _pipe_of(self._out).error = OSError(errno.EPIPE, os.strerror(errno.EPIPE))


def _pipe_of(stream: TextIO) -> _Pipe:
    raw = stream.buffer.raw  # type: ignore[attr-defined]
    assert isinstance(raw, _Pipe)  # noqa: S101 - made here
    return raw


def _open_missing_descriptors() -> None:
    """Open what the caller has closed of 0, 1 and 2: the next file would get the number, and be printed into."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)


def _stream(found: TextIO | None, descriptor: int) -> io.TextIOWrapper:
    """A stream on a file descriptor in the encoding of the one found, with an escape for whatever that does not hold."""
    encoding = found.encoding if found is not None else "utf-8"
    raw = _Pipe(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty())


def _quiet_libraries() -> None:
    """Nothing but graftkit's own words on the terminal: no warnings, logs, panics, or tracebacks of threads."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # where Rust and C++ print
    os.close(null)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None
