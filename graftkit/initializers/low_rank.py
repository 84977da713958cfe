"""The factors of a low-rank update: A of shape ``(r, in)`` and B of shape ``(out, r)``, as peft initialises them.

Everything is float32 and seeded, so that a factor's bits depend on nothing but its seed and its weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: A, B
Factors = tuple["Tensor", "Tensor"]

#: Elements that are widened at a time: they stay in the caches.
WIDENED = 1 << 18


def kaiming(shape: tuple[int, ...], seed: int) -> Tensor:
    """A by peft's default, uniform within ±1/sqrt(fan_in) (He 2015 with a = sqrt(5), as torch's own linears)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)


def gaussian(shape: tuple[int, ...], seed: int, std: float) -> Tensor:
    """Normal with ``std``: 1/r for A, 1 for the B of an embedding."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.nn.init.normal_(torch.empty(shape), std=std, generator=generator)


def pissa(weight: Tensor, rank: int, scaling: float) -> Factors:
    """The principal singular triples of the weight (Meng 2024, arXiv 2404.02948), so that scaling·B·A is their sum.

    They come from the eigenvectors of the smaller of the weight's two products with itself. In float64 that is closer to the exact
    ones than a singular value decomposition in float32, and takes half the time.
    """
    import torch

    wide = weight.shape[0] < weight.shape[1]
    matrix = weight.T if wide else weight
    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for _, block in _widened(matrix, torch.float64):
        gram.addmm_(block.T, block)
    v = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1)
    u = torch.cat([block @ v for _, block in _widened(matrix, torch.float64)])
    s = u.norm(dim=0)
    u /= s.clamp_min(torch.finfo(s.dtype).tiny)
    left, right = (v, u.T) if wide else (u, v.T)
    return _split(left, s / scaling, right)


def pissa_niter(weight: Tensor, rank: int, scaling: float, iterations: int, seed: int) -> Factors:
    """PiSSA from a randomised SVD with subspace iterations (Halko 2009), as ``torch.svd_lowrank`` does it.

    The weight may have any floating dtype; it is widened some rows at a time. Each iteration goes over it once, for both of its
    products: singular values below about 3e-4 of the largest are lost in float32 by that.
    """
    import torch

    basis = torch.randn(weight.shape[1], rank, generator=torch.Generator().manual_seed(seed))
    for _ in range(iterations):
        image = torch.zeros(rank, weight.shape[1])
        for _, block in _widened(weight, torch.float32):
            image.addmm_((block @ basis).T, block)
        basis = torch.linalg.qr(image.T).Q.contiguous()
    left = torch.linalg.qr(torch.cat([block @ basis for _, block in _widened(weight, torch.float32)])).Q
    core = torch.zeros(rank, weight.shape[1])
    for rows, block in _widened(weight, torch.float32):
        core.addmm_(left[rows].T, block)
    v, s, uh = torch.linalg.svd(core.T, full_matrices=False)  # tall: several times as fast as wide
    return _split(left @ uh.T, s / scaling, v.T)


def _widened(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield the weight's rows in a wider ``dtype``, some at a time; what was yielded before is overwritten."""
    import torch

    step = max(WIDENED // weight.shape[1], 1)
    buffer = torch.empty_like(weight[:step], dtype=dtype)  # laid out as the weight, which may be transposed
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        part = weight[rows]
        yield rows, buffer[: len(part)].copy_(part)


def _split(u: Tensor, s: Tensor, vh: Tensor) -> Factors:
    root = s.sqrt()
    return (root[:, None] * vh).float().contiguous(), (u * root).float().contiguous()


def olora(weight: Tensor, rank: int) -> Factors:
    """The leading part of the weight's QR decomposition (Büyükakyüz 2024, arXiv 2406.01775), which its leading columns decide."""
    import torch

    q = torch.linalg.qr(weight[:, :rank].float()).Q
    r = torch.zeros(rank, weight.shape[1])
    for rows, block in _widened(weight, torch.float32):
        r.addmm_(q[rows].T, block)
    return r, q.contiguous()


def orthogonal(out_features: int, in_features: int, rank: int, seed: int) -> Factors:
    """A in the odd and B in the even rows of one random rotation, so that B·A = 0; ``rank`` is even."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q
    a = (torch.randn(in_features, rank // 2, generator=generator) @ q[0::2]).T / 10
    b = (torch.randn(rank // 2, out_features, generator=generator).T @ q[1::2]) / 10
    return a.contiguous(), b.contiguous()


def mica(weight: Tensor, rank: int) -> Factors:
    """B from the left singular vectors of the smallest singular values, A zero (arXiv 2604.01694)."""
    import torch

    u = torch.linalg.svd(weight.float(), full_matrices=False).U
    return torch.zeros(rank, weight.shape[1]), u[:, -rank:].contiguous()


def offset(factors: Factors) -> Factors:
    """The same factors twice with opposite signs, pairwise side by side: of rank 2r, and their product is zero.

    *Shapes:* ``(r, in), (out, r) -> (2r, in), (out, 2r)``; rows a1, a1, a2, … and columns b1, -b1, b2, …
    """
    import torch

    a, b = factors
    return a.repeat_interleave(2, 0), torch.stack((b, -b), 2).flatten(1)


#: Kinds that are a function of weight, rank and scaling alone.
FROM_WEIGHT: dict[str, Callable[[Tensor, int, float], Factors]] = {
    "pissa": pissa,
    "olora": lambda weight, rank, _: olora(weight, rank),
    "mica": lambda weight, rank, _: mica(weight, rank),
}
