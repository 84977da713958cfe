"""Signals that ask a run to stop, kept from acting where a step and what is said of it may not come apart."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: What a terminal, a scheduler and a closed connection send.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Keep :data:`STOPPING` from acting until the block is left; what came meanwhile acts then, unless the block failed.

    Python runs handlers in the main thread alone, whichever thread the kernel hands a signal to: masks of a thread would not do, and
    in another thread than the main one nothing is held, nor needs to be.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.getsignal(number) for number in STOPPING}
    ours = [number for number, handler in before.items() if handler is not None]  # None: not set from Python
    try:
        for number in ours:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, note)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
    if came:
        signal.raise_signal(came[0])
