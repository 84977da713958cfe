"""How far two tensors lie apart, relative to the size of the first."""

from __future__ import annotations

import math
from typing import Any

import torch

#: A value beyond this is a mask that a model puts on scores, no measure of their size.
MASK = 1e5


def gap(old: Any, new: Any) -> float:
    """``max |new - old| / rms(old)`` in float64; infinite where only one of the two is NaN or infinite.

    *Shapes:* equal. Where both hold the same infinity or both NaN they agree.
    """
    if torch.equal(old, new):
        return 0.0
    a, b = old.double(), new.double()
    apart = (a != b) & ~(a.isnan() & b.isnan())
    if not apart.any():
        return 0.0
    largest = float((a - b)[apart].abs().nan_to_num(nan=math.inf).max())
    return largest / scale(a)


def scale(values: Any) -> float:
    """Root mean square of what is finite and no mask; 1 where nothing else is left, or all is zero."""
    seen = values[values.isfinite() & (values.abs() < MASK)].double()
    size = float(seen.square().mean().sqrt()) if seen.numel() else 0.0
    return size or 1.0
