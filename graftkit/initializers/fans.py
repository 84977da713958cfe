"""How many terms an output of a weight sums (fan in), and into how many outputs an input goes (fan out)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Fans(NamedTuple):
    """Fan in and fan out of one linear map."""

    fan_in: int
    fan_out: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Which axes of a stored weight are a map's outputs and inputs; every axis after them is the receptive field.

    Attributes:
        output: the axis of the outputs, counted behind the stack.
        input: the axis of the inputs, counted behind the stack.
        stack: how many leading axes index independent maps, such as experts.
        parts: sizes of the maps that are fused along the output axis, such as query, key and value; empty for one map.
        repeats: how often the pattern of ``parts`` repeats along the output axis, such as once for each head.
        groups: of a grouped convolution.
        lookup: whether all inputs but one are zero, so that an output sums a single term.
    """

    output: int = 0
    input: int = 1
    stack: int = 0
    parts: tuple[int, ...] = ()
    repeats: int = 1
    groups: int = 1
    lookup: bool = False


#: ``torch.nn.Linear``: ``[out, in]``.
LINEAR = Layout()

#: ``transformers.pytorch_utils.Conv1D`` of GPT-2: ``[in, out]``.
CONV1D = Layout(output=1, input=0)

#: ``torch.nn.Embedding``: ``[ids, d]``. A lookup, so the fan in is 1; torch.nn.init counts ``[out, in]`` here.
EMBEDDING = Layout(output=1, input=0, lookup=True)


def conv(groups: int = 1) -> Layout:
    """``torch.nn.Conv1d``, ``Conv2d``, ``Conv3d``: ``[out, in / groups, *kernel]``. torch.nn.init knows no groups."""
    return Layout(groups=groups)


def experts(*, transposed: bool = False, parts: tuple[int, ...] = (), repeats: int = 1) -> Layout:
    """Fused experts: ``[experts, out, in]``, or ``[experts, in, out]`` when ``transposed``."""
    return Layout(int(transposed), int(not transposed), stack=1, parts=parts, repeats=repeats)


def output_axis(layout: Layout) -> int:
    """The axis of the outputs, counted from the front of the stored tensor."""
    return layout.stack + layout.output


def part_shapes(shape: tuple[int, ...], layout: Layout) -> list[tuple[int, ...]]:
    """The stored shape of each fused map, all repeats together; just ``shape`` where nothing is fused.

    Raises:
        ValueError: the parts do not fill the output axis.
    """
    axis = output_axis(layout)
    sizes = [size * layout.repeats for size in layout.parts] or [shape[axis]]
    if sum(sizes) != shape[axis]:
        raise ValueError(f"parts {layout.parts} x {layout.repeats} do not fill axis {axis} of shape {list(shape)}")
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def fans(shape: tuple[int, ...], layout: Layout = LINEAR) -> tuple[Fans, ...]:
    """Fan in and fan out of each map that the tensor holds; they are those of a single expert, kernel included.

    Raises:
        ValueError: the tensor is a vector or has too few axes for the layout.
    """
    if len(shape) < layout.stack + 2:
        raise ValueError(f"a tensor of shape {list(shape)} is no matrix, so it has no fan in and fan out")
    field = math.prod(shape[layout.stack + 2 :])
    fan_in = 1 if layout.lookup else shape[layout.stack + layout.input] * field
    axis = output_axis(layout)
    return tuple(Fans(fan_in, part[axis] * field // layout.groups) for part in part_shapes(shape, layout))
