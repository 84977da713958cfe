"""How much of a forward is done, told by what it has read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftkit.verification.paging.pager import Pager


@contextlib.contextmanager
def part_of(pager: Pager | None, step: Callable[[float], None], index: int, count: int) -> Iterator[None]:
    """While forward ``index`` of ``count`` runs, call ``step`` with the share of all that is done; nothing without a pager."""
    if pager is None or not pager.nbytes:
        yield
        return
    done, whole = 0, pager.nbytes

    def read(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        step((index + min(done / whole, 1.0)) / count)

    pager.read = read
    try:
        yield
    finally:
        pager.read = None
