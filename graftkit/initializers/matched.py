"""Matched rows: random directions with the norms that the trained rows beside them have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.initializers.fans import LINEAR, Layout, output_axis

if TYPE_CHECKING:
    import torch


def row_norms(weight: torch.Tensor, layout: Layout = LINEAR) -> torch.Tensor:
    """Norm of the weights of each output, over all that the output sums.

    *Shape:* float32, the stack's axes flattened with the outputs: ``(experts · out,)``.
    """
    axis = output_axis(layout)
    rows = weight.float().movedim(axis, layout.stack)
    norms: torch.Tensor = rows.flatten(layout.stack + 1).norm(dim=-1)
    return norms.flatten()


def matched(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, generator: torch.Generator, *, norms: torch.Tensor
) -> torch.Tensor:
    """Rows of uniformly random direction whose norms are evenly spaced quantiles of ``norms``, in random order.

    With as many rows as ``norms`` has, the norms are exactly those, each once. ``norms`` comes from :func:`row_norms` of
    the trained tensor beside.
    """
    import torch

    axis = output_axis(layout)
    made = torch.empty(shape, dtype=torch.float32).normal_(generator=generator).movedim(axis, layout.stack)
    rows = made.reshape(*made.shape[: layout.stack + 1], -1)
    count = rows[..., 0].numel()
    ranks = ((torch.arange(count) + 0.5) / count * len(norms)).long()
    order = torch.randperm(count, generator=generator)
    wanted = norms.float().sort().values[ranks][order].view(rows.shape[:-1])
    rows = rows * (wanted / rows.norm(dim=-1)).unsqueeze(-1)
    back: torch.Tensor = rows.reshape(made.shape).movedim(layout.stack, axis)
    return back.contiguous().to(dtype)
