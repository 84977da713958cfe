"""Maximal update parametrisation: variances and learning rates under which every layer learns at any width (Yang 2022).

For Adam, with m = width / base width, where the learning rate was found at the base width (Table 3 of Tensor Programs V):

================  ====================  ===================  =============
weight            variance, default     variance, given σ    learning rate
================  ====================  ===================  =============
hidden            1/fan_in              σ²/m                 1/m
readout           1/(m·fan_in)          σ²/m²                1/m
lookup, vector    (σ must be given)     σ²                   1
================  ====================  ===================  =============

σ is the standard deviation at the base width. No multiplier goes into the forward pass: the weights that a checkpoint
was loaded with stay in the standard parametrisation, and a trainer reads the learning rates from a file.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graftkit.initializers.fans import LINEAR, Fans, Layout
from graftkit.initializers.filling import filled

if TYPE_CHECKING:
    import torch


def grows_with_width(shape: tuple[int, ...], layout: Layout) -> bool:
    """Whether each output sums more terms in a wider model: so in a matrix, not in a vector or a lookup."""
    return len(shape) >= layout.stack + 2 and not layout.lookup


def learning_rate_multiplier(shape: tuple[int, ...], layout: Layout = LINEAR, *, width_ratio: float) -> float:
    """What to multiply Adam's learning rate of the base width with for this parameter."""
    return 1 / width_ratio if grows_with_width(shape, layout) else 1.0


def mup(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, generator: torch.Generator, *,
    width_ratio: float, std: float | None = None, readout: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Normal with the variance of the table above.

    Raises:
        ValueError: the tensor is a lookup, and no ``std`` is given.
    """
    if std is None and layout.lookup:
        raise ValueError("a lookup has no fan in that could give its spread; give std")
    ratio = width_ratio if grows_with_width(shape, layout) else 1.0

    def fill(part: torch.Tensor, fans: Fans) -> None:
        base = math.sqrt(ratio / fans.fan_in) if std is None else std
        part.normal_(0, base / (ratio if readout else math.sqrt(ratio)), generator=generator)

    return filled(shape, dtype, layout, fill)
