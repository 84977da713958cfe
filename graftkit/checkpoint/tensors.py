"""Lazy tensors: a shape and a dtype now, and the segments of bytes that make the tensor up when it is written.

A tensor is *stored* (a byte range of a source file), *held* (a tensor of a model in memory), *patched* (the source's bytes
with some rows replaced or appended), *gathered* (some of its rows) or *computed* (bytes made on demand, whole or some
rows at a time). A reader only ever sees :class:`FileRange` and :class:`Produced` segments, of which :class:`Lent` ones are the
source's own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from graftkit.checkpoint.hub.file import HubFile

#: Bytes per element of each dtype of the safetensors format that fills whole bytes.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip

#: The dtypes that graftkit computes with. Every other dtype is bytes that are carried along.
FLOATING = ("F64", "F32", "F16", "BF16")

#: What holds a stored tensor: a file on this machine, or one of a hub repository.
SourceFile = Path | HubFile


@dataclass(frozen=True, slots=True)
class FileRange:
    """``nbytes`` bytes of ``path`` from ``offset`` on."""

    path: SourceFile
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Produced:
    """``nbytes`` bytes that ``produce()`` returns when they are needed; ``blank`` says that all of them are zero."""

    nbytes: int
    produce: Callable[[], memoryview]
    blank: bool = False


@dataclass(frozen=True, slots=True)
class Lent(Produced):
    """Bytes of a tensor that a model in memory holds, or a file in a form of its own: the source's, as a range of a file is."""


Segment = FileRange | Produced


def from_source(segment: Segment) -> bool:
    """Whether the bytes of a segment are the source's."""
    return isinstance(segment, FileRange | Lent)


class LazyTensor(Protocol):
    """What every tensor of a checkpoint offers. ``dtype`` is the safetensors tag, such as ``BF16``."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def segments(self) -> Iterator[Segment]:
        """Yield the tensor's bytes in order, as ranges of source files and produced pieces."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that lies in a file: ``nbytes`` bytes at ``offset`` from the start of ``path``."""

    dtype: str
    shape: tuple[int, ...]
    path: SourceFile
    offset: int
    nbytes: int

    def segments(self) -> Iterator[Segment]:
        yield FileRange(self.path, self.offset, self.nbytes)


@dataclass(frozen=True, slots=True)
class Computed:
    """A tensor whose bytes are made on demand by ``produce``."""

    dtype: str
    shape: tuple[int, ...]
    produce: Callable[[], memoryview]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def segments(self) -> Iterator[Segment]:
        yield Produced(self.nbytes, self.produce)


#: Makes the bytes of the rows from ``start`` to ``stop`` of the first axis.
Rows = Callable[[int, int], memoryview]


@dataclass(frozen=True, slots=True)
class Streamed:
    """A tensor whose bytes are made on demand, ``rows`` rows of the first axis at a time and in their order.

    ``begin()`` returns what makes them; it is called when the first are wanted and given up with the last.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: int
    begin: Callable[[], Rows]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def segments(self) -> Iterator[Segment]:
        held: list[Rows] = []

        def produce(start: int, stop: int) -> memoryview:
            if not held:
                held.append(self.begin())
            made = held[0](start, stop)
            if stop == self.shape[0]:
                held.clear()
            return made

        width = self.nbytes // max(self.shape[0], 1)
        for start in range(0, self.shape[0], self.rows):
            stop = min(start + self.rows, self.shape[0])
            yield Produced((stop - start) * width, functools.partial(produce, start, stop))


#: What zeros are read from, again and again: however large a tensor is, no more than this lies in memory.
_ZEROS = memoryview(bytes(1 << 20))


@dataclass(frozen=True, slots=True)
class Zeros:
    """A tensor of zeros that is never held whole."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def segments(self) -> Iterator[Segment]:
        whole, rest = divmod(self.nbytes, len(_ZEROS))
        for nbytes in (*[len(_ZEROS)] * whole, *([rest] if rest else [])):
            yield Produced(nbytes, lambda nbytes=nbytes: _ZEROS[:nbytes], blank=True)  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Patched:
    """``base`` with the rows ``rows`` replaced or appended; the other rows are copied and never decoded.

    A row is one index of ``axis``, and every dimension before ``axis`` must be 1, so that rows are contiguous.
    ``produce()`` returns the bytes of all rows of ``rows``, in that order. The base may be a lazy tensor of any kind, so that
    one operation patches what an earlier one made.
    """

    base: LazyTensor
    axis: int
    rows: tuple[int, ...]
    size: int
    produce: Callable[[], memoryview]

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.base.shape[: self.axis], self.size, *self.base.shape[self.axis + 1 :])

    @property
    def row_nbytes(self) -> int:
        return math.prod(self.base.shape[self.axis + 1 :]) * ITEM_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.size * self.row_nbytes

    @property
    def produced_nbytes(self) -> int:
        return len(self.rows) * self.row_nbytes

    def _part(self, start: int, stop: int) -> Callable[[], memoryview]:
        return lambda: self.produce()[start:stop]

    def segments(self) -> Iterator[Segment]:
        width, old = self.row_nbytes, self.base.shape[self.axis]
        kept = Cutter(self.base.segments())
        position, index = 0, 0
        while index < len(self.rows):
            first = self.rows[index]
            yield from kept.take(position * width, min(first, old) * width)
            stop = index + 1
            while stop < len(self.rows) and self.rows[stop] == self.rows[stop - 1] + 1:
                stop += 1
            yield Produced((stop - index) * width, self._part(index * width, stop * width))
            position, index = self.rows[stop - 1] + 1, stop
        yield from kept.take(position * width, old * width)


class Cutter:
    """Takes ranges of bytes, ascending, out of the segments of a tensor; a piece that is cut is produced once for all its parts."""

    def __init__(self, segments: Iterator[Segment]) -> None:
        self._segments, self._start = segments, 0
        self._held: Segment | None = None

    def take(self, start: int, stop: int) -> Iterator[Segment]:
        """Yield what makes up the bytes from ``start`` to ``stop``."""
        while start < stop:
            held = self._next() if self._held is None else self._held
            end = self._start + held.nbytes
            if start < end:
                upper = min(stop, end)
                yield part_of_segment(held, start - self._start, upper - self._start)
                start = upper
            if start >= end:
                self._start, self._held = end, None

    def _next(self) -> Segment:
        segment = next(self._segments)
        if isinstance(segment, Produced):
            segment = replace(segment, produce=functools.cache(segment.produce))
        self._held = segment
        return segment


def part_of_segment(segment: Segment, start: int, stop: int) -> Segment:
    """The bytes from ``start`` to ``stop`` of a segment."""
    if stop - start == segment.nbytes:
        return segment
    if isinstance(segment, FileRange):
        return FileRange(segment.path, segment.offset + start, stop - start)
    return replace(segment, nbytes=stop - start, produce=lambda: segment.produce()[start:stop])


def patch_rows(
    base: LazyTensor, *, axis: int, rows: tuple[int, ...], size: int, produce: Callable[[], memoryview]
) -> Patched:
    """Return ``base`` with ``rows`` produced anew and grown to ``size`` along ``axis``.

    Raises:
        ValueError: the rows are not ascending, leave a hole behind the old end, or are not contiguous in the file.
    """
    old = base.shape[axis]
    appended = [row for row in rows if row >= old]
    if list(rows) != sorted(set(rows)) or appended != list(range(old, size)) or size < old:
        raise ValueError(f"rows {rows} do not grow an axis of {old} to {size}")
    if math.prod(base.shape[:axis]) != 1:
        raise ValueError(f"rows of axis {axis} are not contiguous in a tensor of shape {base.shape}")
    return Patched(base, axis, rows, size, produce)
