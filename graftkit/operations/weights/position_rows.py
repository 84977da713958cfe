"""The rows of a learned table of positions that is to be longer: lazy tensors, old rows as ranges of the source's bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from graftkit.architecture.positions import PositionTable
from graftkit.checkpoint.computed import computed
from graftkit.checkpoint.reading import read_tensor, row_chunks
from graftkit.checkpoint.rearranged import joined, narrowed
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.initializers import rows as schemes
from graftkit.initializers.one_thread import OneThread
from graftkit.initializers.seeding import seed_of
from graftkit.initializers.statistics import table_statistics
from graftkit.recipe.extend_positions import Interpolate, PositionScheme, Repeat
from graftkit.recipe.schemes import MeanCov, Normal, Zeros

if TYPE_CHECKING:
    from torch import Tensor


#: Gives the whole longer table of that name in memory, as its class makes it.
ByClass = Callable[[str], "Tensor"]


def longer_table(
    tensor: LazyTensor, table: PositionTable, more: int, init: PositionScheme | ByClass, seed: tuple[int, int]
) -> LazyTensor:
    """The table with ``more`` rows, made by ``init``; rows that belong to no position stay as they are."""
    if callable(init):
        rows = computed(tensor.dtype, (more, *tensor.shape[1:]), lambda: init(table.memory)[table.rows :])
        return joined([tensor, rows], 0)
    used = narrowed(tensor, 0, table.reserved, table.rows)
    if isinstance(init, Repeat):
        return joined([tensor, *_repeated(used, more)], 0)
    if isinstance(init, Interpolate):
        count = table.rows - table.reserved + more
        made = computed(tensor.dtype, (count, *tensor.shape[1:]), lambda: stretched(read_tensor(used), count))
        return joined([narrowed(tensor, 0, 0, table.reserved), made], 0) if table.reserved else made
    new = computed(tensor.dtype, (more, *tensor.shape[1:]), lambda: _by_scheme(used, table, more, init, seed))
    return joined([tensor, new], 0)


def _repeated(used: LazyTensor, more: int) -> list[LazyTensor]:
    """So many rows of ``used``, from its first on, again and again."""
    count = used.shape[0]
    whole, rest = divmod(more, count)
    return [*[used] * whole, *([narrowed(used, 0, 0, rest)] if rest else [])]


def stretched(rows: Tensor, count: int) -> Tensor:
    """``count`` rows, the first and the last being those of ``rows``, the others linear between the two next to them; float64."""
    import torch

    wide = rows.double()
    places = torch.linspace(0, len(rows) - 1, count, dtype=torch.float64)
    below = places.floor().long().clamp(max=len(rows) - 2) if len(rows) > 1 else torch.zeros(count, dtype=torch.long)
    share = (places - below)[:, None]
    return wide[below] * (1 - share) + wide[(below + 1).clamp(max=len(rows) - 1)] * share


def _by_scheme(
    used: LazyTensor, table: PositionTable, more: int, init: PositionScheme, seed: tuple[int, int]
) -> Tensor:
    def source() -> Iterator[tuple[int, Tensor]]:
        return row_chunks(used, 0, used.shape[0])

    seeds = [seed_of(*seed, table.memory, row) for row in range(table.rows, table.rows + more)]
    with OneThread():
        statistics = table_statistics(source, used.shape[0])
        match init:
            case Zeros():
                return schemes.zeros(statistics, more)
            case Normal(std=std):
                return schemes.normal(statistics, seeds, std)
            case MeanCov(eps=eps):
                return schemes.mean_cov(source, statistics, seeds, eps)
            case _:
                return schemes.mean(statistics, more)
