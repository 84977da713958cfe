"""Run models by all ranks where that can be done, else by rank 0 alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from graftkit.running.split.interrupts import CannotSplit, LineBroken

if TYPE_CHECKING:
    from graftkit.running.split.crew import Crew

Found = TypeVar("Found")


def together(crew: Crew | None, find: Callable[[Crew | None], Found]) -> Found:
    """What ``find`` returns with the crew; where a model cannot be split, the crew notes why, and ``find`` begins again without it.

    Raises:
        GraftkitError: another rank ended.
    """
    if crew is not None:
        try:
            return find(crew)
        except CannotSplit as reason:
            crew.refuse(str(reason))
        except LineBroken as broken:
            raise broken.error from broken
    return find(None)
