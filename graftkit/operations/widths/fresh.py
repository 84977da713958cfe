"""New slices of an axis: made when they are written, from a scheme, or as their class makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graftkit.architecture.fresh_values import own_values
from graftkit.checkpoint.computed import computed
from graftkit.checkpoint.grown import Piece
from graftkit.checkpoint.reading import read_tensor, torch_dtype
from graftkit.checkpoint.rearranged import narrowed
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, printable
from graftkit.initializers.fans import Layout
from graftkit.initializers.make import ModelFacts, make
from graftkit.initializers.matched import row_norms
from graftkit.initializers.seeding import generator_for, seed_of
from graftkit.operations.weights.fresh import Target

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.recipe import WeightScheme

#: Schemes of which new slices are a matrix of their own; any other gives them the values of a whole new matrix.
OF_SLICES = ("matched", "orthogonal")


@dataclass(frozen=True, slots=True)
class SlicesOfScheme:
    """Makes new slices along ``axis`` of ``old``, in the wider tensor ``target``, of ``size`` indices, by ``scheme``.

    ``pieces`` is how the axis is put together. Each piece is seeded by ``seed``, the tensor's name and its place.
    """

    scheme: WeightScheme
    facts: ModelFacts
    seed: tuple[object, ...]
    target: Target
    old: LazyTensor
    axis: int
    pieces: Sequence[Piece]

    def __call__(self, piece: int, shape: tuple[int, ...]) -> LazyTensor:
        """The slices that begin at ``piece``."""
        return computed(self.old.dtype, shape, lambda: self._values(piece, shape))

    def _values(self, piece: int, shape: tuple[int, ...]) -> Tensor:
        dtype, layout = torch_dtype(self.old.dtype), self.target.layout
        if layout is None:
            return self._of_class(piece, shape[self.axis]).to(dtype)
        generator = generator_for(*self.seed, self.target.name, self.axis, piece)
        if self.scheme.scheme in OF_SLICES:
            along = _along(layout, self.axis)
            norms = self._norms(piece, along) if self.scheme.scheme == "matched" else None
            return make(self.scheme, shape, dtype, along, generator, replace(self.facts, norms=norms))
        size = sum(length for _, _, length in self.pieces)
        whole = (*shape[: self.axis], size, *shape[self.axis + 1 :])
        made = make(self.scheme, whole, dtype, replace(layout, parts=(), repeats=1), generator, self.facts)
        return made.narrow(self.axis, piece, shape[self.axis])

    def _of_class(self, piece: int, size: int) -> Tensor:
        """What a new model of the class has there, as for gains and biases."""
        found = own_values(self.target.skeleton, self.target.name, seed_of(*self.seed, self.target.name))
        if found is None:
            raise InputRejected(
                f"{self.target.skeleton.architecture} does not say what a new {printable(self.target.name)} holds"
            )
        return found.narrow(self.axis, piece, size)

    def _norms(self, piece: int, along: Layout) -> Tensor:
        """Norms of the old slices that stand before the new ones, or of all where none do."""
        before = [(start, size) for place, start, size in self.pieces if start is not None and place + size == piece]
        start, size = before[0] if before else (0, self.old.shape[self.axis])
        return row_norms(read_tensor(narrowed(self.old, self.axis, start, start + size)), along)


def _along(layout: Layout, axis: int) -> Layout:
    """The layout in which ``axis`` is that of the outputs, so that each index of it is one row."""
    place = axis - layout.stack
    return Layout(output=place, input=layout.input if place == layout.output else layout.output, stack=layout.stack)
