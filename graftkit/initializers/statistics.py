"""What is known of a table's trained rows: which are live, their mean and their spread; one streamed pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.initializers.one_thread import OneThread

if TYPE_CHECKING:
    from torch import Tensor

#: A row whose norm is below this share of the median norm was never trained.
NEVER_TRAINED = 1e-3

#: Why a row was never trained: its norm is zero or below that share, or it equals an earlier row.
ZERO, SMALL, DUPLICATE = 1, 2, 3

#: How many rows of 16-bit floats are added in float32 before float64 takes over.
BLOCK = 32

#: How much of a table of 16-bit floats stands beside itself in float32 at a time: little enough to stay in a core's cache.
WIDE_BYTES = 1 << 20

#: About how many columns are hashed to find equal rows; those found are compared whole.
SAMPLED = 64

#: ``(first row, rows of shape (n, d))`` over all rows of interest, in order; may be called more than once.
RowSource = Callable[[], Iterator[tuple[int, "Tensor"]]]


@dataclass(frozen=True, slots=True)
class TableStatistics:
    """Statistics of the first ``size`` rows of a table.

    *Shapes:* ``live`` bool, ``norms`` float64 and ``kinds`` uint8 ``(size,)``; ``mean`` float64 ``(d,)``, over the live rows.
    ``std`` is the root mean square of the live rows' deviation from ``mean``. ``kinds`` says why a row was never trained, and 0
    where it was; ``all_used`` says that fewer than half of the rows were, so that all were averaged instead. Rows that are left
    out are neither live nor of any kind.
    """

    size: int
    live: Tensor
    mean: Tensor
    std: float
    norms: Tensor
    kinds: Tensor
    all_used: bool

    @property
    def zero(self) -> int:
        """How many rows are all zero."""
        return int((self.kinds == ZERO).sum())

    @property
    def small(self) -> int:
        """How many others have a norm next to none."""
        return int((self.kinds == SMALL).sum())

    @property
    def duplicates(self) -> int:
        """How many others equal an earlier row."""
        return int((self.kinds == DUPLICATE).sum())

    @property
    def count(self) -> int:
        """How many rows the mean is over."""
        return int(self.live.sum())


def table_statistics(rows: RowSource, size: int, left_out: Collection[int] = ()) -> TableStatistics:
    """Find the live rows among the first ``size`` rows but those ``left_out``, and their mean, accumulated in float64."""
    with OneThread():
        return _statistics(rows, size, sorted(index for index in left_out if index < size))


def _statistics(rows: RowSource, size: int, left_out: list[int]) -> TableStatistics:
    import torch

    counted = torch.ones(size, dtype=torch.bool)
    counted[left_out] = False
    norms, hashes = torch.empty(size, dtype=torch.float64), torch.empty(size, dtype=torch.int64)
    total, squares = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    buffer = torch.empty(0)
    for start, given in rows():
        stop = start + len(given)
        chunk = _blanked(given, [index - start for index in left_out if start <= index < stop])
        hashes[start:stop] = row_hashes(chunk[:, :: max(chunk.shape[1] // SAMPLED, 1)])
        if not len(buffer):
            buffer = torch.empty(max(WIDE_BYTES // (4 * chunk.shape[1]) // BLOCK, 1) * BLOCK, chunk.shape[1])
        place = start
        for part in torch.split(chunk, len(buffer)):
            wide = part if part.element_size() > 2 else buffer[: len(part)].copy_(part)
            norms[place : place + len(part)] = torch.linalg.vector_norm(wide, dim=1)
            total = total + _sum_rows(part, wide)
            place += len(part)
        squares = squares + norms[start:stop].square().sum()
    kinds = _kinds(rows, norms, hashes, counted)
    live = counted & (kinds == 0)
    all_used = 2 * int(live.sum()) < size - len(left_out)
    if all_used:
        live = counted
    dead = (counted & ~live).nonzero().flatten()
    for _, picked in _pick(rows, dead):
        wide = picked.to(torch.float64)
        total, squares = total - wide.sum(0), squares - wide.square().sum()
    count = int(live.sum())
    mean = total / count
    spread = float(squares) / count - float(mean.square().sum())
    std = (max(spread, 0.0) / mean.numel()) ** 0.5
    return TableStatistics(size, live, mean, std, norms, kinds, all_used)


def _blanked(chunk: Tensor, places: list[int]) -> Tensor:
    """The rows with zeros in ``places``: what is left out may hold anything, NaN too."""
    if places:
        chunk = chunk.clone()
        chunk[places] = 0
    return chunk


def _sum_rows(chunk: Tensor, wide: Tensor) -> Tensor:
    """The sum of the rows in float64.

    Rows of 16-bit floats are first added in float32, BLOCK at a time: 8 or 11 bits of significand and 5 of the count leave
    room for values whose sizes differ by a factor of 256 before anything is rounded at all.
    """
    import torch

    if chunk.element_size() > 2 or len(chunk) < BLOCK:
        return chunk.sum(0, dtype=torch.float64)
    whole = len(chunk) // BLOCK * BLOCK
    blocks = torch.ones(1, BLOCK) @ wide[:whole].view(-1, BLOCK, wide.shape[1])
    return blocks.sum((0, 1), dtype=torch.float64) + wide[whole:].sum(0, dtype=torch.float64)


def row_hashes(chunk: Tensor) -> Tensor:
    """A 64-bit hash of the bytes of each row: equal rows have equal hashes, others almost never.

    *Shape:* ``(n, d)`` to int64 ``(n,)``.
    """
    import torch

    raw = chunk.contiguous().view(torch.uint8).view(len(chunk), -1)
    for dtype in (torch.int64, torch.int32, torch.int16):
        if raw.shape[1] % torch.empty(0, dtype=dtype).element_size() == 0:
            words = raw.view(dtype)
            break
    else:
        words = raw
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (words.shape[1],), generator=generator) * 2 + 1
    return (words.to(torch.int64) * weights).sum(1)


def _kinds(rows: RowSource, norms: Tensor, hashes: Tensor, counted: Tensor) -> Tensor:
    """Why each of the ``counted`` rows was never trained. *Shape:* uint8 ``(size,)``."""
    import torch

    kinds = torch.zeros(len(norms), dtype=torch.uint8)
    kinds[counted & (norms < NEVER_TRAINED * norms[counted].median())] = SMALL
    kinds[counted & (norms == 0)] = ZERO
    kinds[_copies(rows, hashes, counted & (kinds == 0))] = DUPLICATE
    return kinds


def _copies(rows: RowSource, hashes: Tensor, live: Tensor) -> Tensor:
    """Indices of live rows that equal an earlier live row, byte for byte."""
    import torch

    order = torch.argsort(hashes, stable=True)
    order = order[live[order]]
    same = torch.zeros(len(order), dtype=torch.bool)
    same[1:] = hashes[order[1:]] == hashes[order[:-1]]
    suspects = torch.unique(torch.cat([order[same], order[:-1][same[1:]]]))
    first: dict[bytes, int] = {}
    copies = []
    for index, picked in _pick(rows, suspects):
        for row, values in zip(index.tolist(), picked, strict=True):
            raw = values.contiguous().view(torch.uint8).numpy().tobytes()
            if raw in first:
                copies.append(row)
            else:
                first[raw] = row
    return torch.tensor(sorted(copies), dtype=torch.int64)


def _pick(rows: RowSource, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(indices, rows)`` of the ascending ``wanted`` indices, streamed."""
    import torch

    if not len(wanted):
        return
    for start, chunk in rows():
        low, high = torch.searchsorted(wanted, torch.tensor([start, start + len(chunk)])).tolist()
        if high > low:
            index = wanted[low:high]
            yield index, chunk[index - start]
