"""Lazy tensors whose bytes are those of others in another shape, order or number, and tensors computed value by value.

Whatever can be is a range of the source's file, so that its bytes are copied and never decoded; the rest is made of one whole
tensor at a time. Bytes are moved as integers of the same width: every dtype is, also those that torch does not have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.reading import read_rows, read_tensor, torch_dtype
from graftkit.checkpoint.rounding import round_once
from graftkit.checkpoint.tensors import ITEM_BYTES, Computed, LazyTensor, Rows, Segment, Stored, Streamed

if TYPE_CHECKING:
    from torch import Tensor

#: The integer dtype of each width in bytes.
WORDS = {1: "U8", 2: "I16", 4: "I32", 8: "I64"}

#: Bytes in float64 that are computed at a time.
BLOCK = 8 << 20


@dataclass(frozen=True, slots=True)
class Viewed:
    """The bytes of ``base`` under another dtype or shape, both of the same size."""

    base: LazyTensor
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    def segments(self) -> Iterator[Segment]:
        yield from self.base.segments()


@dataclass(frozen=True, slots=True)
class Joined:
    """The bytes of ``parts`` one behind the other, joined along the first axis."""

    parts: tuple[LazyTensor, ...]

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def segments(self) -> Iterator[Segment]:
        for part in self.parts:
            yield from part.segments()


def reshaped(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """The same bytes in another shape."""
    return replace(tensor, shape=shape) if isinstance(tensor, Stored) else Viewed(tensor, tensor.dtype, shape)


def permuted(tensor: LazyTensor, dims: Sequence[int]) -> LazyTensor:
    """The axes of a tensor in the order ``dims``."""
    shape = tuple(tensor.shape[axis] for axis in dims)
    return Computed(tensor.dtype, shape, lambda: as_bytes(_words(tensor).permute(*dims)))


def narrowed(tensor: LazyTensor, axis: int, start: int, stop: int) -> LazyTensor:
    """The indices ``start`` to ``stop`` of one axis."""
    shape = (*tensor.shape[:axis], stop - start, *tensor.shape[axis + 1 :])
    if isinstance(tensor, Stored) and math.prod(tensor.shape[:axis]) == 1:
        width = math.prod(tensor.shape[axis + 1 :]) * ITEM_BYTES[tensor.dtype]
        return Stored(tensor.dtype, shape, tensor.path, tensor.offset + start * width, (stop - start) * width)
    return Computed(tensor.dtype, shape, lambda: as_bytes(_words(tensor).narrow(axis, start, stop - start)))


def joined(parts: Sequence[LazyTensor], axis: int) -> LazyTensor:
    """Tensors that differ in nothing but the size of ``axis``, joined along it."""
    if axis == 0:
        return Joined(tuple(parts))
    size = sum(part.shape[axis] for part in parts)
    shape = (*parts[0].shape[:axis], size, *parts[0].shape[axis + 1 :])
    return Computed(parts[0].dtype, shape, lambda: _join(parts, axis))


def _join(parts: Sequence[LazyTensor], axis: int) -> memoryview:
    import torch

    return as_bytes(torch.cat([_words(part) for part in parts], axis))


def elementwise(tensors: Sequence[LazyTensor], dtype: str, function: Callable[..., Tensor]) -> LazyTensor:
    """A tensor of ``dtype`` whose values ``function`` makes of those of ``tensors`` at the same place.

    It takes their rows in float64, some at a time, and gives float64, which is rounded once.
    """
    shape = tensors[0].shape

    def rounded(*values: Tensor) -> memoryview:
        return as_bytes(round_once(function(*(value.double() for value in values)), torch_dtype(dtype)))

    if not shape:
        return Computed(dtype, (), lambda: rounded(*map(read_tensor, tensors)))
    rows = max(BLOCK // max(8 * math.prod(shape[1:]), 1), 1)

    def begin() -> Rows:
        readers = [row_reader(tensor) for tensor in tensors]
        return lambda start, stop: rounded(*(read(start, stop) for read in readers))

    return Streamed(dtype, shape, rows, begin)


def row_reader(tensor: LazyTensor) -> Callable[[int, int], Tensor]:
    """What gives rows of a tensor; one that lies in no file is made whole and once."""
    if isinstance(tensor, Stored):
        return lambda start, stop: read_rows(tensor, 0, start, stop)
    whole = read_tensor(tensor).flatten(1) if len(tensor.shape) > 1 else read_tensor(tensor)[:, None]
    return lambda start, stop: whole[start:stop]


def _words(tensor: LazyTensor) -> Tensor:
    """The whole tensor as integers of its own width."""
    return read_tensor(Viewed(tensor, WORDS[ITEM_BYTES[tensor.dtype]], tensor.shape))
