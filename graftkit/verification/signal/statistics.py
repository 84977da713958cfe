"""Figures of the residual stream, of one sequence at a time. *Shapes:* ``(tokens, width)``, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def rms(values: Tensor) -> float:
    """Root mean square of all entries."""
    return float(values.square().mean().sqrt())


def kurtosis(values: Tensor) -> float:
    """The fourth central moment over the squared second: 3 for a normal distribution, more where few entries stand out."""
    centred = values - values.mean()
    variance = centred.square().mean()
    return float(centred.pow(4).mean() / variance.square()) if variance > 0 else 0.0


def token_cosine(values: Tensor) -> float:
    """The mean cosine between two different tokens: 1 where all tokens have become the same direction."""
    import torch

    units = torch.nn.functional.normalize(values, dim=1)
    count = len(units)
    if count < 2:
        return 1.0
    return float((units.sum(0).square().sum() - units.square().sum()) / (count * (count - 1)))


def entropy(weights: Tensor) -> float:
    """Mean entropy in nats of rows of attention weights. *Shape:* ``(heads, queries, keys)``."""
    import torch

    return float(torch.special.entr(weights).sum(-1).mean())
