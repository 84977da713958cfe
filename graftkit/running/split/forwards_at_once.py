"""Several forwards at the same time: one computes here while others wait for blocks that other ranks run for them.

One thread at a time has the turn, and computes. It gives the turn up where it waits for another rank, and behind each block that is run
here if an earlier forward has its answer, so that no rank waits for the next block of that one. So nothing is computed at the same time
in this process, and each forward draws its random numbers from a stream of its own.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from torch import nn

Found = TypeVar("Found")

#: Seconds after which a thread that waits looks again, so that a signal reaches it.
LOOK = 0.1

#: The place of a thread that runs no forward: other ranks wait for those that do.
LAST = 1 << 30


class Cancelled(BaseException):
    """Nobody waits for what this forward gives."""


class Turn:
    """What one thread at a time has; of those that wait the one of the lowest ``place`` gets it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: int | None = None
        self._waiting: list[tuple[int, int]] = []

    def take(self, place: int) -> None:
        """Wait for it."""
        mine = (place, threading.get_ident())
        with self._changed:
            self._waiting.append(mine)
            try:
                while self._holder is not None or min(self._waiting) != mine:
                    self._changed.wait(LOOK)
                self._holder = mine[1]
            finally:  # a signal does not keep others from it
                self._waiting.remove(mine)
                self._changed.notify_all()

    def give(self) -> None:
        """Let the next have it, if this thread has it."""
        with self._changed:
            if self._holder == threading.get_ident():
                self._holder = None
                self._changed.notify_all()

    def is_wanted_before(self, place: int) -> bool:
        """Whether one of a lower place waits for it."""
        return any(other < place for other, _ in self._waiting)


class Turns:
    """The turn to compute here, and one for each other rank, which answers one question after the other."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self._here = Turn()
        self._there = {rank: Turn() for rank in ranks}
        self._is_cancelled = False
        self._mine = threading.local()

    @property
    def _place(self) -> int:
        """That of this thread: its forward's number, or behind all of them."""
        place: int = getattr(self._mine, "place", LAST)
        return place

    @contextlib.contextmanager
    def computing(self, place: int = LAST) -> Iterator[None]:
        """Have the turn to compute here inside, from here on at that place among the threads that wait."""
        self._mine.place = place
        self._here.take(self._place)
        try:
            yield
        finally:
            self._here.give()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Give the turn up inside, which this thread has."""
        state = torch.default_generator.get_state()
        self._here.give()
        try:
            yield
        finally:
            self._here.take(self._place)
            torch.default_generator.set_state(state)

    @contextlib.contextmanager
    def asking(self, rank: int) -> Iterator[None]:
        """Have the turn to ask a rank inside, and the turn to compute here, which this thread has."""
        if self._is_cancelled:
            raise Cancelled
        with self.resting():
            self._there[rank].take(self._place)
        try:
            yield
        finally:
            self._there[rank].give()

    def cancel(self) -> None:
        """Let forwards end where they would ask another rank next."""
        self._is_cancelled = True

    def pass_on(self) -> None:
        """Let an earlier forward compute first, if one waits for it."""
        if self._here.is_wanted_before(self._place):
            with self.resting():
                pass


class Task(Generic[Found]):
    """One forward, number ``place``, in a thread of its own."""

    def __init__(self, turns: Turns, run: Callable[[], Found], place: int) -> None:
        self._turns, self._run, self._place = turns, run, place
        self._found: Found | None = None
        self._raised: BaseException | None = None
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work,), daemon=True, name="forward")
        self._thread.start()

    def _work(self) -> None:
        try:
            with self._turns.computing(self._place):
                self._found = self._run()
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is asked for
            self._raised = error

    def wait(self) -> None:
        """Wait until it is done, without the turn."""
        while self._thread.is_alive():
            self._thread.join(LOOK)

    def __call__(self) -> Found:
        """What it gave, once, so that it is not kept; or what it raised is raised here."""
        if self._raised is not None:
            raise self._raised
        found, self._found = self._found, None
        return found  # type: ignore[return-value]


@contextlib.contextmanager
def run_at_once(
    turns: Turns, runs: Sequence[Callable[[], Found]], width: int
) -> Iterator[Iterator[Callable[[], Found]]]:
    """Give for each of ``runs``, in their order, what gives what it gave; ``width`` of them are under way at the same time.

    This thread has the turn when it is called, and whenever it has something.
    """
    under_way: deque[Task[Found]] = deque()

    def found() -> Iterator[Callable[[], Found]]:
        left = enumerate(runs)
        for _ in runs:
            with turns.resting():
                while len(under_way) < width and (following := next(left, None)) is not None:
                    under_way.append(Task(turns, following[1], following[0]))
                under_way[0].wait()
            yield under_way.popleft()

    try:
        with turns.computing():
            yield found()
    except BaseException:  # a signal too: no forward is under way beside what is cleaned up then
        turns.cancel()  # what was asked of other ranks is answered first, so that they are in step
        for task in under_way:
            task.wait()
        raise


class PassingOn:
    """The forward of a block that is run here: behind it, an earlier forward computes first."""

    def __init__(self, block: nn.Module, turns: Callable[[], Turns | None]) -> None:
        self._forward, self._turns = block.forward, turns
        self.__wrapped__ = block.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self._forward(*args, **kwargs)
        turns = self._turns()
        if turns is not None:
            turns.pass_on()
        return found
