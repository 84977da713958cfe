"""What is known of a table's trained rows: which are live, their mean and their spread; one streamed pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.initializers.one_thread import OneThread

if TYPE_CHECKING:
    from torch import Tensor

#: A row whose norm is below this share of the median norm was never trained.
NEVER_TRAINED = 1e-3

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

    *Shapes:* ``live`` bool ``(size,)``; ``mean`` float64 ``(d,)``, over the live rows. ``std`` is the root mean square of
    the live rows' deviation from ``mean``. ``zero``, ``small`` and ``duplicates`` count the rows that are not live;
    ``all_used`` says that fewer than half of the rows were live, so that all were averaged instead.
    """

    size: int
    live: Tensor
    mean: Tensor
    std: float
    zero: int
    small: int
    duplicates: int
    all_used: bool

    @property
    def count(self) -> int:
        """How many rows the mean is over."""
        return int(self.live.sum())


def table_statistics(rows: RowSource, size: int) -> TableStatistics:
    """Find the live rows among the first ``size`` rows and their mean, accumulated in float64."""
    with OneThread():
        return _statistics(rows, size)


def _statistics(rows: RowSource, size: int) -> TableStatistics:
    import torch

    norms, hashes = torch.empty(size, dtype=torch.float64), torch.empty(size, dtype=torch.int64)
    total, squares = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    buffer = torch.empty(0)
    for start, chunk in rows():
        stop = start + len(chunk)
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
    live, zero, small, duplicates = _live(rows, norms, hashes)
    all_used = 2 * int(live.sum()) < size
    if all_used:
        live = torch.ones(size, dtype=torch.bool)
    dead = (~live).nonzero().flatten()
    for _, picked in _pick(rows, dead):
        wide = picked.to(torch.float64)
        total, squares = total - wide.sum(0), squares - wide.square().sum()
    count = size - len(dead)
    mean = total / count
    spread = float(squares) / count - float(mean.square().sum())
    std = (max(spread, 0.0) / mean.numel()) ** 0.5
    return TableStatistics(size, live, mean, std, zero, small, duplicates, all_used)


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


def _live(rows: RowSource, norms: Tensor, hashes: Tensor) -> tuple[Tensor, int, int, int]:
    import torch

    median = float(norms.median())
    zero = norms == 0
    small = ~zero & (norms < NEVER_TRAINED * median)
    live = ~(zero | small)
    copies = _copies(rows, hashes, live)
    live[copies] = False
    return live, int(zero.sum()), int(small.sum()), len(torch.unique(copies))


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
