"""How far two tensors lie apart, relative to the size of the first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graftkit.running.bits import same_bits

if TYPE_CHECKING:
    from torch import Tensor

#: A value beyond this is a mask that a model puts on scores, no measure of their size.
MASK = 1e5


def gap(old: Tensor, new: Tensor) -> float:
    """``max |new - old| / rms(old)`` in float64; infinite where only one of the two is NaN or infinite.

    *Shapes:* equal. Where both hold the same infinity or both NaN they agree.
    """
    if same_bits(old, new):
        return 0.0
    a, b = old.double(), new.double()
    most = largest(a - b)
    if not math.isfinite(most):
        apart = (a != b) & ~(a.isnan() & b.isnan())
        most = largest((a - b)[apart].nan_to_num(nan=math.inf)) if apart.any() else 0.0
    return most / scale(a) if most else 0.0


def largest(values: Tensor) -> float:
    """The largest absolute value; NaN where one is NaN."""
    return max(abs(float(end)) for end in values.aminmax())


def scale(values: Tensor) -> float:
    """Root mean square of what is finite and no mask; 1 where nothing else is left, or all is zero."""
    usual = largest(values) < MASK
    seen = values.reshape(-1) if usual else values[values.isfinite() & (values.abs() < MASK)]
    size = float(seen.double().square().mean().sqrt()) if seen.numel() else 0.0
    return size or 1.0
