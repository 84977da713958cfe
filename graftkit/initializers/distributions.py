"""Distributions whose spread is given, not derived from fans: normal, truncated normal, uniform, depth-scaled normal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def normal(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, *, mean: float = 0.0, std: float
) -> torch.Tensor:
    """N(mean, std²)."""
    import torch

    return torch.empty(shape, dtype=torch.float32).normal_(mean, std, generator=generator).to(dtype)


def trunc_normal(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, *,
    mean: float = 0.0, std: float, cut: float = 2.0,
) -> torch.Tensor:  # fmt: skip
    """N(mean, std²), redrawn where it lies more than ``cut`` standard deviations from the mean (BERT: 0.02 and 2).

    The limits of torch's ``trunc_normal_`` are absolute, by default ±2: at std 0.02 they cut nothing.
    """
    import torch

    made = torch.empty(shape, dtype=torch.float32)
    low, high = mean - cut * std, mean + cut * std
    return torch.nn.init.trunc_normal_(made, mean, std, low, high, generator=generator).to(dtype)


def uniform(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, *, a: float, b: float
) -> torch.Tensor:
    """U(a, b): variance (b - a)²/12."""
    import torch

    return torch.empty(shape, dtype=torch.float32).uniform_(a, b, generator=generator).to(dtype)


def depth_scaled(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, *, std: float, layers: int
) -> torch.Tensor:
    """N(0, std²/2L) with L the *final* number of layers, for projections that write to the residual stream (GPT-2).

    Each layer adds two of them, so that 2L independent branches together add std² and not 2L·std².
    """
    return normal(shape, dtype, generator, std=std / math.sqrt(2 * layers))
