"""The factors of one adapted weight, widened, expert by expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.architecture.peft.edits import Factors
from graftkit.checkpoint.reading import read_tensor
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from torch import Tensor


def read_factors(pair: Factors, shown: str) -> list[tuple[Tensor, Tensor]]:
    """``a`` ``(r, in)`` and ``b`` ``(out, r)`` of each expert in float64; ``shown`` names the adapter in errors.

    Raises:
        InputRejected: a value is not finite.
    """
    a = read_tensor(pair.a).double().reshape(pair.experts, pair.rank, -1)
    b = read_tensor(pair.b).double().reshape(-1, pair.rank, pair.experts)
    if bad := sum(factor.numel() - int(factor.isfinite().sum()) for factor in (a, b)):
        raise InputRejected(
            f"{shown}: the factors of {printable(pair.weight)} have {bad:,} value(s) that are not finite: the training"
            " diverged; take an earlier checkpoint"
        )
    return [(a[expert], b[..., expert]) for expert in range(pair.experts)]
