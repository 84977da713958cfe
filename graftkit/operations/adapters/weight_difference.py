"""The difference of two stored weights as low-rank factors, one matrix in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.checkpoint.computed import TensorGroup
from graftkit.checkpoint.reading import read_tensor
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, printable
from graftkit.initializers.seeding import generator_for
from graftkit.operations.adapters.change_rank import pad

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class WeightDifference:
    """``tuned - base`` of one linear's weight, ``name``; ``transposed`` where it lies as ``(in, out)``.

    The factors are made once and held in float32: together they are as large as the adapter. From then on ``lost`` is the
    share of energy that they lack, and ``least`` what any factors of their rank lack, by the singular values. Directions that
    the difference has not are drawn from ``seed``.
    """

    name: str
    base: LazyTensor
    tuned: LazyTensor
    transposed: bool
    seed: tuple[object, ...]
    lost: float = 0.0
    least: float = 0.0

    @property
    def largest_rank(self) -> int:
        """The smaller dimension."""
        return min(self.base.shape)

    def rank_for(self, energy: float) -> int:
        """The smallest rank whose best product keeps the share ``energy``; reads both weights.

        Raises:
            InputRejected: a value of either is not finite.
        """
        import torch

        squares = torch.linalg.eigvalsh(_gram(self._difference())).flip(0).clamp(min=0)
        kept = squares.cumsum(0) / squares.sum()
        return int((kept < energy).sum()) + 1

    def tensors(self, rank: int) -> tuple[LazyTensor, LazyTensor]:
        """``a`` ``(rank, in)`` and ``b`` ``(out, rank)``, in float32."""
        rows, columns = self.base.shape
        out, wide = (columns, rows) if self.transposed else (rows, columns)
        both = TensorGroup(lambda: self._make(rank))
        return both.tensor(0, "F32", (rank, wide)), both.tensor(1, "F32", (out, rank))

    def _difference(self) -> Tensor:
        """``(out, in)`` in float64.

        Raises:
            InputRejected: a value is not finite.
        """
        difference = read_tensor(self.tuned).double().sub_(read_tensor(self.base))
        if bad := difference.numel() - int(difference.isfinite().sum()):
            raise InputRejected(
                f"extract_lora: {printable(self.name)}: the difference of fine-tuned and base has {bad:,} value(s) that are not"
                " finite; one of the two is damaged, or its training diverged: take an earlier checkpoint"
            )
        return difference.T if self.transposed else difference

    def _make(self, rank: int) -> tuple[Tensor, Tensor]:
        """The nearest product of that rank (Eckart and Young, 1936), from the eigenvectors of the smaller Gram matrix."""
        import torch

        difference = self._difference()
        squares, vectors = torch.linalg.eigh(_gram(difference))
        squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
        energy = float(squares.sum()) or 1.0
        self.least = float(squares[rank:].sum()) / energy
        # below this an eigenvalue is the rounding of the Gram matrix
        kept = min(rank, int((squares > squares[0] * len(squares) * torch.finfo(squares.dtype).eps).sum()))
        vectors, root = vectors[:, :kept], squares[:kept].sqrt().sqrt()
        if difference.shape[0] <= difference.shape[1]:
            a, b = (vectors.T @ difference) / root[:, None], vectors * root
        else:
            a, b = vectors.T * root[:, None], (difference @ vectors) / root
        a, b = (factor.float() for factor in pad(a, b, rank, generator_for(*self.seed, self.name)))
        self.lost = float(difference.sub_(b.double() @ a.double()).square().sum()) / energy
        return a.contiguous(), b.contiguous()


def _gram(difference: Tensor) -> Tensor:
    return difference @ difference.T if difference.shape[0] <= difference.shape[1] else difference.T @ difference
