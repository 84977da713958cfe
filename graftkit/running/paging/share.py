"""How much of a forward is done, told by what it has read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftkit.running.paging.pager import Pager


@contextlib.contextmanager
def part_of(
    step: Callable[[float], None], index: int, count: int, *forwards: tuple[Pager | None, int]
) -> Iterator[None]:  # fmt: skip
    """While part ``index`` of ``count`` runs, call ``step`` with the share of all that is done.

    ``forwards`` gives how many times the part runs the model of each pager; nothing is told of models in memory.
    """
    pagers = [pager for pager, _ in forwards if pager is not None]
    whole = sum(pager.nbytes * times for pager, times in forwards if pager is not None)
    done = 0

    def read(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        step((index + min(done / whole, 1.0)) / count)

    for pager in pagers if whole else ():
        pager.read = read
    try:
        yield
    finally:
        for pager in pagers:
            pager.read = None
