"""Fresh values for existing tensors: made when they are written, from a scheme or as their class makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from graftkit.architecture.fresh_values import own_values
from graftkit.architecture.parameters import layout_of
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.computed import computed
from graftkit.checkpoint.reading import chunks, read_tensor, torch_dtype
from graftkit.checkpoint.tensors import LazyTensor, Zeros
from graftkit.initializers.fans import LINEAR, Layout
from graftkit.initializers.make import ModelFacts, make
from graftkit.initializers.matched import row_norms
from graftkit.initializers.seeding import generator_for, seed_of
from graftkit.recipe.weight_schemes import is_zero

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.recipe import WeightScheme


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor to be made anew: its name on disk and in memory, and the class that it belongs to.

    ``layout`` is None for what is no linear map, which gets what its class gives a new model.
    """

    disk: str
    name: str
    skeleton: Skeleton
    layout: Layout | None

    @classmethod
    def find(cls, disk: str, name: str, skeleton: Skeleton, *, converted: bool) -> Target:
        """Find the layout; a converted tensor is one of the maps that are stacked in memory."""
        return cls(disk, name, skeleton, LINEAR if converted else layout_of(skeleton, name))


@dataclass
class FreshTensors:
    """Makes the new tensors on demand, each seeded by its own name; ``noted`` is the root mean square of each that was made."""

    scheme: WeightScheme
    facts: ModelFacts
    seed: tuple[int, int]
    noted: dict[str, float] = field(default_factory=dict)
    _before: dict[str, LazyTensor] = field(default_factory=dict)

    def computed(self, target: Target, old: LazyTensor, *, readout: bool = False) -> LazyTensor:
        """The lazy tensor that takes the place of ``old``, with its dtype and shape; zeros are known as such."""
        self._before[target.disk] = old
        if target.layout is not None and is_zero(self.scheme):
            self.noted[target.disk] = 0.0
            return Zeros(old.dtype, old.shape)
        return computed(old.dtype, old.shape, lambda: self._values_noted(target, old, readout=readout))

    def figures(self) -> Mapping[str, Any]:
        """Root mean square before and after, and the number of elements, by name on disk."""
        return {
            name: {"elements": math.prod(old.shape), "rms_before": rms(old), "rms_after": self.noted.get(name)}
            for name, old in self._before.items()
        }

    def _values_noted(self, target: Target, old: LazyTensor, *, readout: bool) -> Tensor:
        values = self._values(target, old, readout=readout)
        self.noted[target.disk] = _rms(values.double().square().sum(), values.numel())
        return values

    def _values(self, target: Target, old: LazyTensor, *, readout: bool) -> Tensor:
        dtype = torch_dtype(old.dtype)
        if target.layout is None:
            values = own_values(target.skeleton, target.name, seed_of(*self.seed, target.disk))
            assert values is not None  # noqa: S101 - by construction: such targets are chosen by what their class says
            return values.to(dtype)
        norms = row_norms(read_tensor(old), target.layout) if self.scheme.scheme == "matched" else None
        facts = replace(self.facts, readout=readout, norms=norms)
        generator = generator_for(*self.seed, target.disk)
        return make(self.scheme, old.shape, dtype, target.layout, generator, facts)


def rms(tensor: LazyTensor) -> float:
    """Root mean square of all elements, accumulated in float64 over bounded pieces."""
    import torch

    dtype = torch_dtype(tensor.dtype)
    pieces = (torch.frombuffer(bytearray(piece), dtype=dtype).double() for piece in chunks(tensor))
    return _rms(sum(piece.square().sum() for piece in pieces), math.prod(tensor.shape))


def _rms(squares: Tensor | float, count: int) -> float:
    return math.sqrt(float(squares) / max(count, 1))
