"""Low-rank factors of another rank: pure functions from ``a`` ``(r, in)`` and ``b`` ``(out, r)`` in float64 to such factors.

On each new or empty direction exactly one of the two factors is zero: the product does not see it, and training can use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_rank(a: Tensor, b: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Factors of rank ``rank``, cut or padded, and the share of energy lost."""
    lost = 0.0
    if rank < len(a):
        a, b, lost = truncate(a, b, rank)
    if len(a) < rank:
        a, b = pad(a, b, rank, generator)
    return a, b, lost


def pad(a: Tensor, b: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """More directions: rows of ``a`` as peft initialises them, uniform within ±1/sqrt(in), and zero columns of ``b``."""
    import torch

    more = rank - a.shape[0]
    bound = a.shape[1] ** -0.5
    fresh = (2 * torch.rand(more, a.shape[1], generator=generator, dtype=a.dtype) - 1) * bound
    return torch.cat((a, fresh)), torch.cat((b, b.new_zeros(b.shape[0], more)), 1)


def truncate(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The factors of rank ``rank`` whose product is nearest to ``b @ a`` (Eckart and Young, 1936), and the share of energy lost.

    By QR of both factors, so that no matrix larger than they are is made. Each factor takes the root of the singular values.
    """
    import torch

    left, right, values = singular_factors(a, b)
    energy = values.square().sum()
    if energy == 0:
        return a[:rank], b[:, :rank], 0.0
    kept = values[:rank]
    lost = float(values[rank:].square().sum() / energy)
    empty = kept <= values[0] * torch.finfo(values.dtype).eps * max(a.shape[0], 1)
    root = kept.sqrt()
    return (
        right[:rank] * torch.where(empty, root[0], root)[:, None],
        left[:, :rank] * torch.where(empty, 0, root),
        lost,
    )


def singular_factors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(left, right, values)`` with ``b @ a = left · diag(values) · right``; *shapes* ``(out, k)``, ``(k, in)``, ``(k,)``."""
    import torch

    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, v @ q_a.T, values
