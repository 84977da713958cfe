"""Filling a tensor map by map: in float32, each fused map with its own fans, and cast once at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graftkit.initializers.fans import Fans, Layout, fans, output_axis, part_shapes

if TYPE_CHECKING:
    import torch


def filled(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, fill: Callable[[torch.Tensor, Fans], object]
) -> torch.Tensor:
    """Call ``fill(map, fans)`` on an empty float32 tensor of each fused map, and join them along the output axis.

    *Shape:* ``shape``. ``fill`` works in place, as the functions of ``torch.nn.init`` do.
    """
    import torch

    made = []
    for part, part_fans in zip(part_shapes(shape, layout), fans(shape, layout), strict=True):
        made.append(torch.empty(part, dtype=torch.float32))
        fill(made[-1], part_fans)
    if len(made) == 1:
        return made[0].to(dtype)
    axis = output_axis(layout)
    runs = [part.view(*part.shape[:axis], layout.repeats, -1, *part.shape[axis + 1 :]) for part in made]
    return torch.cat(runs, axis + 1).flatten(axis, axis + 1).to(dtype)
