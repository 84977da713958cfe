"""Which index of each axis of one parameter of a result is which of its source, where a width has changed, and by what values go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graftkit.architecture.index_map import IndexMap
from graftkit.checkpoint.rounding import round_once

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class AxisMaps:
    """``axes`` holds the axes whose indices are no longer what they were, each with its map; every other axis is as it was.

    With a ``scale`` the result has ``(offset + value) * scale - offset`` for each value of the source: a gain that is stored as what
    it is beyond one has the offset 1.
    """

    axes: tuple[tuple[int, IndexMap], ...]
    scale: float = 1.0
    offset: float = 0.0

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> AxisMaps:
        """Read what ``dataclasses.asdict`` and JSON have made of one."""
        axes = tuple((axis, IndexMap.from_json(value)) for axis, value in found["axes"])
        return cls(axes, found.get("scale", 1.0), found.get("offset", 0.0))

    def fits(self, old: Sequence[int], new: Sequence[int]) -> bool:
        """Whether these are the shapes of such a parameter."""
        sizes = list(old)
        for axis, indices in self.axes:
            if sizes[axis : axis + 1] != [indices.source]:
                return False
            sizes[axis] = indices.result
        return sizes == list(new)

    def pair(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """The corresponding slices of both, of one shape; where values are scaled, the old ones are, and rounded to the new dtype."""
        for axis, indices in self.axes:
            old, new = indices.of_source(old, axis), indices.of_result(new, axis)
        return (old, new) if self.scale == 1.0 else (round_once(self.scaled(old), new.dtype), new)

    def scaled(self, values: Tensor) -> Tensor:
        """What the source's values are in the result, in float64."""
        return (values.double() + self.offset) * self.scale - self.offset

    def placed(self, old: Tensor, new: Tensor) -> Tensor:
        """The result's values in float64, with what the source's are there, unrounded."""
        whole = new.double()
        view = whole.clone() if whole is new else whole
        places = [self._places(axis, size, view) for axis, size in enumerate(view.shape)]
        kept = old
        for axis, indices in self.axes:
            kept = indices.of_source(kept, axis)
        view[tuple(places)] = self.scaled(kept)
        return view

    def _places(self, axis: int, size: int, values: Tensor) -> Tensor:
        """The indices of an axis that come from the source, shaped to be used with those of the others."""
        import torch

        indices = dict(self.axes).get(axis)
        found = torch.arange(size) if indices is None else torch.tensor(indices.places, dtype=torch.int64)
        return found.to(values.device).view([-1 if other == axis else 1 for other in range(values.ndim)])

    def summed(self, new: Tensor) -> Tensor:
        """What the result's gradients are in the source: added up where they come from, and scaled as values are. *Shape:* its own."""
        for axis, indices in self.axes:
            new = indices.summed(new, axis)
        return new if self.scale == 1.0 else new * self.scale

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
        offset = later.offset if self.scale == 1.0 else self.offset
        return AxisMaps(tuple(sorted(axes.items())), self.scale * later.scale, offset)

    def along(self, axes: Sequence[tuple[int, IndexMap]]) -> AxisMaps:
        """The same scale along other axes, as a part of the parameter has them."""
        return replace(self, axes=tuple(axes))
