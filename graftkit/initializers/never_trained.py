"""Which rows of a table were never trained: by their norm, because they equal another row, or as they were initialised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.initializers.statistics import TableStatistics

Reason = Literal["zero", "near zero", "duplicate", "initial"]

#: Within so many standard deviations of what a fresh row has, a row may be a fresh one: of a million, 64 lie outside.
DEVIATIONS = 4.0


def untrained_rows(statistics: TableStatistics) -> dict[int, Reason]:
    """Each row whose norm is zero or next to it, or that equals an earlier row, with the reason."""
    reasons: tuple[Reason, ...] = ("zero", "near zero", "duplicate")
    return {index: reasons[kind - 1] for index, kind in enumerate(statistics.kinds.tolist()) if kind}


def initial_rows(
    statistics: TableStatistics, ids: Iterable[int], read: Callable[[int], Tensor], std: float
) -> Iterator[int]:
    """Yield which of ``ids`` have the norm of normal values with ``std`` and no direction in common with the table's mean.

    The norm of d such values is within DEVIATIONS of sqrt(d - 1/2) · std, each sqrt(1/2) · std, and their cosine with a given
    direction within DEVIATIONS of 0, each sqrt(1/d). Where the table's median row is like that too nothing is yielded: then the
    whole table is fresh, or trained rows are as long.

    *Shape:* ``read`` gives a row ``(d,)``.
    """
    d = statistics.mean.numel()
    length = float(statistics.mean.norm())

    def fresh(norm: float) -> bool:
        return abs(norm / std - math.sqrt(d - 0.5)) <= DEVIATIONS * math.sqrt(0.5)

    if not length or fresh(float(statistics.norms.median())):
        return
    for index in ids:
        norm = float(statistics.norms[index])
        if statistics.kinds[index] or not fresh(norm):
            continue
        cosine = float(read(index).double() @ statistics.mean) / (norm * length)
        if abs(cosine) <= DEVIATIONS / math.sqrt(d):
            yield index
