"""What is lost where one product of two factors stands for another: held to what must be lost, and to what rounding adds.

*Shapes:* ``a`` ``(r, in)`` and ``b`` ``(out, r)``, all in float64; every distance is a Frobenius norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.verification.adapters.factor_rounding import summed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """How far a product of rank ``rank`` is off a wanted one, of the norm ``size``.

    ``least`` is the distance of the nearest product of that rank, and ``off`` that of the new one from the nearest to the wanted one
    among those with its own column space. Rounding may add ``allowed`` to the distance, and ``allowed_off`` to ``off``.
    """

    rank: int
    size: float
    distance: float
    least: float
    off: float
    allowed: float
    allowed_off: float

    @property
    def lost(self) -> float:
        """The share of energy that is lost."""
        return (self.distance / (self.size or 1.0)) ** 2

    @property
    def must(self) -> float:
        """The share of energy that any factors of this rank lose."""
        return (self.least / (self.size or 1.0)) ** 2

    @property
    def sentence(self) -> str:
        """What is lost, as the end of a sentence."""
        return f"loses {self.lost:.3g} of its energy; factors of rank {self.rank} lose {self.must:.3g} at least"

    @property
    def failure(self) -> str:
        """What is wrong with it, as the end of a sentence; empty where nothing is."""
        if not self.distance <= self.least + self.allowed:
            return self.sentence
        if not self.off <= self.allowed_off:
            size = self.size or 1.0
            return f"is {self.off / size:.3g} off the nearest product of rank {self.rank}, {self.allowed_off / size:.3g} is allowed"
        return ""


def product_loss(old_a: Tensor, old_b: Tensor, new_a: Tensor, new_b: Tensor, rounding: float) -> Loss:
    """Compare ``new_b @ new_a``, which may be off by ``rounding``, with the wanted ``old_b @ old_a``."""
    import torch

    values = _singular(old_a, old_b)
    allowed = rounding + summed(old_a, old_b) + summed(new_a, new_b)
    return Loss(
        len(new_a),
        float(values.norm()),
        float(_singular(torch.cat((old_a, new_a)), torch.cat((old_b, -new_b), 1)).norm()),
        float(values[len(new_a) :].norm()),
        _off_nearest(old_a, old_b, new_a, new_b),
        allowed,
        allowed + rounding,
    )


def _off_nearest(old_a: Tensor, old_b: Tensor, new_a: Tensor, new_b: Tensor) -> float:
    """How far the new product is from the nearest to the old one among those with its own column space.

    Rounding turns that space by a unit at most, in which the old product has nothing larger than the smallest value kept: this
    adds less than the rounding of the product itself.
    """
    import torch

    used = new_b.any(0)
    q, r = torch.linalg.qr(new_b[:, used])
    return float((r @ new_a[used] - (q.T @ old_b) @ old_a).norm())


def _singular(a: Tensor, b: Tensor) -> Tensor:
    """The singular values of ``b @ a``, by QR of both."""
    import torch

    values: Tensor = torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T)
    return values
