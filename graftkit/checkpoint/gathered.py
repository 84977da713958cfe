"""Rows of a table, all or some of them, in any order, with rows in between that are made when they are written."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from graftkit.checkpoint.tensors import ITEM_BYTES, LazyTensor, Produced, Rows, Segment, part_of_segment

#: How much of the rows that are made is made at a time: little, since it stands beside itself in float64.
MADE_AT_A_TIME = 2 << 20


@dataclass(frozen=True, slots=True)
class Gathered:
    """For each of ``origins`` that row of ``base``, and for each None the next of the rows that ``produce`` makes.

    A row is one index of ``axis``, and every dimension before it is 1, so that rows are contiguous. Rows of the base are copied and
    never decoded. ``produce(start, stop)`` returns the bytes of those rows that are made, counted in their order.
    """

    base: LazyTensor
    axis: int
    origins: tuple[int | None, ...]
    produce: Rows

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.base.shape[: self.axis], len(self.origins), *self.base.shape[self.axis + 1 :])

    @property
    def row_nbytes(self) -> int:
        return math.prod(self.base.shape[self.axis + 1 :]) * ITEM_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        return len(self.origins) * self.row_nbytes

    @property
    def made(self) -> int:
        """How many rows are made."""
        return self.origins.count(None)

    def segments(self) -> Iterator[Segment]:
        width, rows = self.row_nbytes, _Pieces(self.base)
        made = 0
        for origin, count in _runs(self.origins):
            if origin is None:
                yield from self._produced(made, made + count)
                made += count
            else:
                yield from rows.take(origin * width, (origin + count) * width)

    def _produced(self, first: int, last: int) -> Iterator[Segment]:
        step = max(MADE_AT_A_TIME // self.row_nbytes, 1)
        for start in range(first, last, step):
            stop = min(start + step, last)
            yield Produced((stop - start) * self.row_nbytes, functools.partial(self.produce, start, stop))


def gather_rows(base: LazyTensor, *, axis: int, origins: tuple[int | None, ...], produce: Rows) -> Gathered:
    """Return the rows ``origins`` of ``base`` in this order, those that are None produced anew.

    Raises:
        ValueError: the base has no such row, or its rows are not contiguous in the file.
    """
    if math.prod(base.shape[:axis]) != 1:
        raise ValueError(f"rows of axis {axis} are not contiguous in a tensor of shape {base.shape}")
    if any(origin is not None and not 0 <= origin < base.shape[axis] for origin in origins):
        raise ValueError(f"a tensor of shape {base.shape} does not have every row that is asked for")
    return Gathered(base, axis, origins, produce)


def pick_rows(base: LazyTensor, *, axis: int, rows: Iterable[int]) -> Gathered:
    """Return the ``rows`` of ``base`` alone; raises as :func:`gather_rows` does."""
    return gather_rows(base, axis=axis, origins=tuple(rows), produce=lambda _start, _stop: memoryview(b""))


def _runs(origins: tuple[int | None, ...]) -> Iterator[tuple[int | None, int]]:
    """Yield ``(first origin, how many)`` of neighbours that are neighbours in the base too, or are all made."""
    key = lambda item: None if item[1] is None else item[1] - item[0]  # noqa: E731 - one expression, used once
    for _, run in itertools.groupby(enumerate(origins), key):
        found = [origin for _, origin in run]
        yield found[0], len(found)


class _Pieces:
    """The segments of a tensor, of which any range of bytes can be taken; what is produced is produced once."""

    def __init__(self, tensor: LazyTensor) -> None:
        self._segments = [_held(segment) for segment in tensor.segments()]
        self._ends = list(itertools.accumulate(segment.nbytes for segment in self._segments))

    def take(self, start: int, stop: int) -> Iterator[Segment]:
        """Yield what makes up the bytes from ``start`` to ``stop``."""
        number = bisect.bisect_right(self._ends, start)
        while start < stop:
            segment = self._segments[number]
            first = self._ends[number] - segment.nbytes
            upper = min(stop, self._ends[number])
            yield part_of_segment(segment, start - first, upper - first)
            start, number = upper, number + 1


def _held(segment: Segment) -> Segment:
    return replace(segment, produce=functools.cache(segment.produce)) if isinstance(segment, Produced) else segment
