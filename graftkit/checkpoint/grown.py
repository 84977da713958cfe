"""Lazy tensors with a longer axis: old slices where a map says they belong, and others between and behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.reading import read_tensor, torch_dtype
from graftkit.checkpoint.rearranged import BLOCK, WORDS, Joined, Viewed, narrowed, row_reader
from graftkit.checkpoint.tensors import ITEM_BYTES, LazyTensor, Rows, Stored, Streamed, Zeros

if TYPE_CHECKING:
    from torch import Tensor

#: ``(first index of the result, first index of the source, how many)``; the source is None for new slices.
Piece = tuple[int, int | None, int]


class FreshSlices(Protocol):
    """Makes new slices of an axis."""

    def __call__(self, piece: int, shape: tuple[int, ...]) -> LazyTensor:
        """The slices of the ``piece``-th piece of the axis, whose first index in the result is that number."""


def grow_axis(tensor: LazyTensor, axis: int, pieces: Sequence[Piece], fresh: FreshSlices) -> LazyTensor:
    """``tensor`` with the ``pieces`` along ``axis``, in the order of the result and without a gap.

    Along the first axis bytes are copied; along another the tensor is made some rows of the first at a time.
    """

    def shape_of(size: int) -> tuple[int, ...]:
        return (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])

    new = {place: fresh(place, shape_of(size)) for place, start, size in pieces if start is None}
    if axis == 0:
        return Joined(
            tuple(
                new[place] if start is None else narrowed(tensor, 0, start, start + size)
                for place, start, size in pieces
            )
        )
    shape = shape_of(sum(size for _, _, size in pieces))
    rows = max(BLOCK // max(ITEM_BYTES[tensor.dtype] * math.prod(shape[1:]), 1), 1)
    return Streamed(tensor.dtype, shape, rows, lambda: _rows(tensor, axis, pieces, new))


def _rows(tensor: LazyTensor, axis: int, pieces: Sequence[Piece], new: dict[int, LazyTensor]) -> Rows:
    """What makes some rows of the first axis; new slices are made once."""
    import torch

    def as_words(given: LazyTensor) -> LazyTensor:
        dtype = WORDS[ITEM_BYTES[given.dtype]]
        return replace(given, dtype=dtype) if isinstance(given, Stored | Zeros) else Viewed(given, dtype, given.shape)

    read = row_reader(as_words(tensor))
    held = {place: _fresh_reader(as_words(given)) for place, given in new.items()}

    def parts(start: int, stop: int) -> Iterator[Tensor]:
        old = read(start, stop).view(stop - start, *tensor.shape[1:])
        for place, first, size in pieces:
            yield held[place](start, stop) if first is None else old.narrow(axis, first, size)

    return lambda start, stop: as_bytes(torch.cat(list(parts(start, stop)), axis))


def _fresh_reader(given: LazyTensor) -> Callable[[int, int], Tensor]:
    import torch

    if isinstance(given, Zeros):
        return lambda start, stop: torch.zeros(stop - start, *given.shape[1:], dtype=torch_dtype(given.dtype))
    whole = read_tensor(given)
    return lambda start, stop: whole[start:stop]
