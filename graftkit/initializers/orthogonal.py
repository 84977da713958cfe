"""Orthogonal maps: every singular value is the gain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graftkit.initializers.fans import Fans, Layout
from graftkit.initializers.filling import filled

if TYPE_CHECKING:
    import torch


def orthogonal(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, generator: torch.Generator, *, gain: float = 1.0
) -> torch.Tensor:
    """Haar-distributed (semi-)orthogonal maps times ``gain`` (Saxe 2014; uniform by Mezzadri 2007).

    Each expert and each fused map is orthogonal by itself; a kernel is flattened with the inputs. The float32 sample is
    decomposed in float64, so that the result is the same to the last float32 bit but for rare ties, however many threads
    the decomposition runs on.
    """
    import torch

    def fill(part: torch.Tensor, fans: Fans) -> None:  # noqa: ARG001 - the spread needs no fans
        first = layout.stack
        maps = part.movedim((first + layout.output, first + layout.input), (first, first + 1))
        count, rows = math.prod(maps.shape[:first]), maps.shape[first]
        columns = math.prod(maps.shape[first + 1 :])
        made = [_orthogonal(rows, columns, generator) for _ in range(count)]
        maps.copy_(torch.stack(made).view(maps.shape)).mul_(gain)

    return filled(shape, dtype, layout, fill)


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    import torch

    sample = torch.empty(rows, columns).normal_(0, 1, generator=generator).double()
    q, r = torch.linalg.qr(sample if rows >= columns else sample.T)
    signed: torch.Tensor = (q * r.diagonal().sign()).float()
    return signed if rows >= columns else signed.T
