"""Spread from the fans, so that signals (or gradients) keep their variance through a layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from graftkit.initializers.fans import Fans, Layout
from graftkit.initializers.filling import filled

if TYPE_CHECKING:
    import torch

Mode = Literal["fan_in", "fan_out"]

Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]


def gain_of(nonlinearity: Nonlinearity, a: float = 0.0) -> float:
    """Return torch's gain of a nonlinearity: √2 for ReLU, √(2/(1 + a²)) for leaky ReLU of slope ``a``, 5/3 for tanh."""
    import torch

    return torch.nn.init.calculate_gain(nonlinearity, a)


def xavier_uniform(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, generator: torch.Generator, *, gain: float = 1.0
) -> torch.Tensor:
    """U(-b, b) with b = gain·√(6/(fan_in + fan_out)), which has the variance of :func:`xavier_normal` (Glorot 2010)."""

    def fill(part: torch.Tensor, fans: Fans) -> None:
        bound = math.sqrt(3.0) * _xavier_std(fans, gain)
        part.uniform_(-bound, bound, generator=generator)

    return filled(shape, dtype, layout, fill)


def xavier_normal(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, generator: torch.Generator, *, gain: float = 1.0
) -> torch.Tensor:
    """N(0, gain²·2/(fan_in + fan_out)): a compromise between signals forward and gradients backward (Glorot 2010)."""
    return filled(
        shape, dtype, layout, lambda part, fans: part.normal_(0, _xavier_std(fans, gain), generator=generator)
    )


def kaiming_uniform(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, generator: torch.Generator, *,
    mode: Mode = "fan_in", nonlinearity: Nonlinearity = "leaky_relu", a: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """U(-b, b) with b = gain·√(3/fan), which has the variance of :func:`kaiming_normal`.

    ``a = √5`` gives b = 1/√fan_in, variance 1/(3 fan_in): the default of torch.nn.Linear.
    """
    gain = gain_of(nonlinearity, a)

    def fill(part: torch.Tensor, fans: Fans) -> None:
        bound = math.sqrt(3.0) * (gain / math.sqrt(getattr(fans, mode)))
        part.uniform_(-bound, bound, generator=generator)

    return filled(shape, dtype, layout, fill)


def kaiming_normal(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, generator: torch.Generator, *,
    mode: Mode = "fan_in", nonlinearity: Nonlinearity = "leaky_relu", a: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """N(0, gain²/fan): keeps the variance of signals (fan_in) or of gradients (fan_out) through the nonlinearity.

    He 2015; gain² = 2/(1 + a²) for a leaky ReLU of slope ``a``, 2 for ReLU.
    """
    gain = gain_of(nonlinearity, a)
    return filled(
        shape, dtype, layout,
        lambda part, fans: part.normal_(0, gain / math.sqrt(getattr(fans, mode)), generator=generator),
    )  # fmt: skip


def lecun_normal(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, generator: torch.Generator
) -> torch.Tensor:
    """N(0, 1/fan_in): unit variance in, unit variance out (LeCun 1998); what SELU needs (Klambauer 2017)."""
    return filled(
        shape, dtype, layout, lambda part, fans: part.normal_(0, 1 / math.sqrt(fans.fan_in), generator=generator)
    )


def _xavier_std(fans: Fans, gain: float) -> float:
    return gain * math.sqrt(2.0 / float(fans.fan_in + fans.fan_out))
