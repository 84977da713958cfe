"""Constants: nothing is sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def constant(shape: tuple[int, ...], dtype: torch.dtype, value: float) -> torch.Tensor:
    """Every element is ``value``."""
    import torch

    return torch.full(shape, value, dtype=dtype)


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros: a new branch that ends in them leaves the residual stream as it was, and still gets a gradient."""
    return constant(shape, dtype, 0.0)


def ones(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Ones: the gain of a norm that only normalises."""
    return constant(shape, dtype, 1.0)
