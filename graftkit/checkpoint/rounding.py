"""Values in float64, rounded to a narrower dtype once: torch itself goes by way of float32, and so rounds twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 ``values`` to the nearest of ``dtype``, ties to even.

    For half precision, what float32 cannot hold is first brought there with an odd last bit, which no tie of a narrower
    dtype has: rounding it again is rounding the exact value.
    """
    import torch

    if dtype in (torch.float64, torch.float32):
        return values.to(dtype)
    near = values.float()
    away, inexact = near.double().abs() > values.abs(), near.double() != values
    bits = near.view(torch.int32) - away.int()
    bits |= (inexact & near.isfinite()).int()
    return torch.where(near.isfinite(), bits.view(torch.float32), near).to(dtype)
