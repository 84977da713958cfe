"""How far the product of two factors can be off: because they are stored rounded, and because it is a sum.

*Shapes:* ``a`` ``(r, in)`` and ``b`` ``(out, r)``, both in float64; every bound is a Frobenius norm.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Unit roundoff of float64, in which checks multiply and decompose.
WIDE = 2.0**-53


def magnitude(a: Tensor, b: Tensor) -> float:
    """The norm of ``|b| |a|``, from the Gram matrices of both, so that nothing larger than a factor is made."""
    return math.sqrt(float((_gram(a.abs()) * _gram(b.T.abs())).sum()))


def stored(a: Tensor, b: Tensor, dtypes: tuple[torch.dtype, torch.dtype]) -> float:
    """The most that ``b @ a`` can be off what it was before ``a`` and ``b`` were rounded to nearest in ``dtypes``."""
    error_a, error_b = (_rounding(value, dtype) for value, dtype in zip((a, b), dtypes, strict=True))
    return magnitude(error_a, b) + magnitude(a, error_b) + magnitude(error_a, error_b)


def underflow(a: Tensor, b: Tensor, dtype: torch.dtype) -> float:
    """The most that ``b @ a`` can be off because powers of two were multiplied into ``b`` in ``dtype``: what falls below its range."""
    import torch

    info = torch.finfo(dtype)
    return magnitude(a, torch.full_like(b, info.smallest_normal * info.eps / 2))


def summed(a: Tensor, b: Tensor) -> float:
    """The most that two QR decompositions and an SVD in float64 can be off the singular values of ``b @ a``."""
    length = int(a.shape[1] + b.shape[0] + a.shape[0])
    return 4 * length * WIDE * float(a.norm()) * float(b.norm())


def _gram(factor: Tensor) -> Tensor:
    return factor @ factor.T


def _rounding(value: Tensor, dtype: torch.dtype) -> Tensor:
    """By element: half a unit in the last place, below the normal numbers half the smallest one."""
    import torch

    info = torch.finfo(dtype)
    unit = info.eps / 2
    return value.abs() * (unit / (1 - unit)) + info.smallest_normal * unit
