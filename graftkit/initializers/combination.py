"""Several low-rank updates of one weight made one: stacked, which is their sum, or by the arithmetic that peft has for it.

*Shapes* throughout: ``a`` ``(r, in)`` and ``b`` ``(out, r)``, all in float64.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.initializers.seeding import seed_of

if TYPE_CHECKING:
    from torch import Tensor

#: Those whose aim is the weighted sum of the products.
SUMS = frozenset({"cat", "svd"})

#: peft draws what it prunes from torch's only generator.
_DRAWING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Update:
    """``weight · scaling · b @ a``: what an adapter adds, and what the combination multiplies that with."""

    a: Tensor
    b: Tensor
    scaling: float
    weight: float = 1.0

    @property
    def factor(self) -> float:
        """What the product of the factors is multiplied with."""
        return self.weight * self.scaling


@dataclass(frozen=True, slots=True)
class Combination:
    """How updates are combined: peft's ``combination_type`` and its fields, and the seed of what is drawn."""

    kind: str
    density: float | None = None
    majority_sign_method: str = "total"
    seed: tuple[int, int] = (0, 0)

    @property
    def is_sum(self) -> bool:
        """Whether it aims at the weighted sum of the products."""
        return self.kind in SUMS

    @property
    def chooses_rank(self) -> bool:
        """Whether its result is the best approximation of some rank."""
        return self.kind.endswith("svd")

    @property
    def adds_ranks(self) -> bool:
        """Whether the rank of its result is the sum of the ranks."""
        return self.kind == "cat"

    def factors(self, updates: Sequence[Update], weight: str, expert: int = 0) -> tuple[Tensor, Tensor]:
        """Factors whose product is what the combination aims at; with a chosen rank, not yet of that rank.

        ``weight`` names what they update, and with ``expert`` seeds what is drawn. The arithmetic of the kinds that are no sum is
        that of peft, which works on A and on B apart, or, where its name ends with svd, on the products.
        """
        if self.is_sum:
            return stacked(updates)
        seed = seed_of(*self.seed, weight, expert)
        if self.chooses_rank:
            products = [update.scaling * (update.b @ update.a) for update in updates]
            return _as_factors(self._by_peft(products, [update.weight for update in updates], seed))
        roots = [abs(update.factor) ** 0.5 for update in updates]
        signed = [-root if update.factor < 0 else root for root, update in zip(roots, updates, strict=True)]
        a = self._by_peft([update.a for update in updates], signed, seed)
        return a, self._by_peft([update.b for update in updates], roots, seed + 1)

    def _by_peft(self, tensors: list[Tensor], weights: list[float], seed: int) -> Tensor:
        import torch
        from peft.utils import merge_utils

        name = self.kind.removesuffix("_svd")
        function = getattr(merge_utils, "task_arithmetic" if name == "linear" else name)
        given: list[object] = [] if name == "linear" else [self.density]
        given += [self.majority_sign_method] if name.endswith("ties") else []
        with _DRAWING, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            found: Tensor = function(tensors, torch.tensor(weights, dtype=torch.float64), *given)
        return found


def stacked(updates: Sequence[Update]) -> tuple[Tensor, Tensor]:
    """Factors whose product is the weighted sum: the rows of A one below the other, the columns of B side by side."""
    import torch

    return torch.cat([update.a for update in updates]), torch.cat([update.b * update.factor for update in updates], 1)


def join_experts(factors: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The factors of all experts as peft stores them: ``(experts·r, in)`` and ``(out, r·experts)``."""
    import torch

    return torch.cat([a for a, _ in factors]), torch.stack([b for _, b in factors], -1).flatten(1)


def exact_multiplier(ratio: float) -> float | None:
    """The power of two, or zero, that ``ratio`` is; None where it is none, so that multiplying with it rounds.

    A scaling is the quotient of two numbers: what it is off by their rounding is left out.
    """
    if not ratio:
        return 0.0
    near = math.copysign(2.0 ** round(math.log2(abs(ratio))), ratio)
    return near if math.isclose(ratio, near, rel_tol=2.0**-51) else None


def _as_factors(product: Tensor) -> tuple[Tensor, Tensor]:
    """The product as factors of its smaller dimension, one of them the identity."""
    import torch

    rows, columns = product.shape
    identity = torch.eye(min(rows, columns), dtype=product.dtype)
    return (product, identity) if rows <= columns else (identity, product)
