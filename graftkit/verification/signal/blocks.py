"""The stacks of blocks of a model, and which block of the result is which of the source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graftkit.running.split.together import at_owner, parameter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.architecture.index_map import IndexMap


def stacks(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The outermost lists of modules that hold parameters, by name: the blocks of each stack in their order."""
    import torch

    lists = {
        name: list(module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and any(True for _ in module.parameters())
    }
    return {n: found for n, found in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}


def counterparts(
    before: Sequence[nn.Module], after: Sequence[nn.Module], known: IndexMap | None = None
) -> list[int | None]:
    """For each block of the result the index of the source's block that it is; None for a new one.

    Where it is not ``known``, stacks of the same length match place by place. Otherwise a block is one of the source's, taken
    in their order, when its parameters look the same.
    """
    if known is not None:
        return [known.origin(index) for index in range(len(after))]
    if len(before) == len(after):
        return list(range(len(after)))
    marks = [_mark(block) for block in before]
    found: list[int | None] = []
    start = 0
    for block in after:
        mark = _mark(block)
        place = next((i for i in range(start, len(marks)) if marks[i] == mark), None)
        found.append(place)
        start = start if place is None else place + 1
    return found


def _mark(block: nn.Module) -> tuple[tuple[object, ...], ...]:
    """Name, shape and the sum of the first and the last row of each parameter, in float64."""
    return tuple(
        (name, tuple(p.shape), *(at_owner(_ends, _parameter(block, name)) if p.ndim and p.numel() else ()))
        for name, p in block.named_parameters()
    )


def _parameter(block: nn.Module, name: str) -> Tensor:
    owner, _, key = name.rpartition(".")
    found: Tensor = parameter(block.get_submodule(owner), key)
    return found


def _ends(values: Tensor) -> tuple[float, float]:
    first, last = (float(values.detach()[place].double().sum()) for place in (0, -1))
    return first, last
