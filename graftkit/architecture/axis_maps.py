"""Which index of each axis of one parameter of a result is which of its source, where a width has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.architecture.index_map import IndexMap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class AxisMaps:
    """``axes`` holds the axes whose indices are no longer what they were, each with its map; every other axis is as it was."""

    axes: tuple[tuple[int, IndexMap], ...]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> AxisMaps:
        """Read what ``dataclasses.asdict`` and JSON have made of one."""
        return cls(tuple((axis, IndexMap.from_json(value)) for axis, value in found["axes"]))

    def fits(self, old: Sequence[int], new: Sequence[int]) -> bool:
        """Whether these are the shapes of such a parameter."""
        sizes = list(old)
        for axis, indices in self.axes:
            if sizes[axis : axis + 1] != [indices.source]:
                return False
            sizes[axis] = indices.result
        return sizes == list(new)

    def pair(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """The corresponding slices of both, of one shape."""
        for axis, indices in self.axes:
            old, new = indices.of_source(old, axis), indices.of_result(new, axis)
        return old, new

    def summed(self, new: Tensor) -> Tensor:
        """The result's values added up where in the source they come from. *Shape:* the source's."""
        for axis, indices in self.axes:
            new = indices.summed(new, axis)
        return new

    @property
    def has_new(self) -> bool:
        """Whether the result has slices that come from none of the source."""
        return any(indices.fresh for _, indices in self.axes)

    def only_new(self, new: Tensor) -> Tensor:
        """A copy of the result's values with zero wherever a value of the source stands."""
        import torch

        kept = torch.ones((), dtype=torch.bool, device=new.device).expand(new.shape)
        for axis, indices in self.axes:
            here = torch.zeros(indices.result, dtype=torch.bool, device=new.device)
            here[torch.tensor(indices.places, dtype=torch.int64)] = True
            kept = kept & here.view([-1 if other == axis else 1 for other in range(new.ndim)])
        return new.masked_fill(kept, 0)

    def then(self, later: AxisMaps) -> AxisMaps:
        """The composition of these maps and ``later``."""
        axes = dict(self.axes)
        for axis, indices in later.axes:
            axes[axis] = axes[axis].then(indices) if axis in axes else indices
        return AxisMaps(tuple(sorted(axes.items())))
