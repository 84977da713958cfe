"""Orthogonal matching pursuit: each vector as a combination of few others, which are found one after the other.

Source: Pati, Rezaiifar and Krishnaprasad 1993; for rows of embeddings Goddard and Fernandes Neto 2025, arXiv 2506.06607. All of it is
computed in float64. A combination is found to within d units of roundoff of the vector's length, d its number of coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: Bytes in float64 that the found directions of a batch of vectors, and a block of atoms, may take. Each batch reads all atoms k times.
BATCH_BYTES, BLOCK_BYTES = 128 << 20, 8 << 20

#: The unit roundoffs of float64 and of float32.
UNIT, SINGLE_UNIT = 2.0**-53, 2.0**-24

#: The length of the longest atom, where its square is one that float32 can hold.
SINGLE_RANGE = 1e-15, 1e15


@dataclass(frozen=True, slots=True)
class Combinations:
    """Each vector as a combination of atoms.

    *Shapes:* ``atoms`` int64 and ``coefficients`` float64 ``(vectors, k)``; a place that was not needed has the coefficient 0.
    ``residuals`` float64 ``(vectors,)``: what is left of each vector, as a share of its length.
    """

    atoms: Tensor
    coefficients: Tensor
    residuals: Tensor

    def some(self, places: Sequence[int]) -> Combinations:
        """The combinations of some of the vectors alone."""
        wanted = list(places)
        return Combinations(self.atoms[wanted], self.coefficients[wanted], self.residuals[wanted])

    def of(self, rows: Tensor) -> Tensor:
        """The same combinations of other rows, one for each atom. *Shapes:* ``rows`` ``(atoms, d)``; float64 ``(vectors, d)``."""
        import torch

        found = torch.zeros(len(self.atoms), rows.shape[1], dtype=torch.float64)
        for atoms, coefficients in zip(self.atoms.T, self.coefficients.T, strict=True):
            found += coefficients[:, None] * rows[atoms].double()
        return found


def matching_pursuit(vectors: Tensor, atoms: Tensor, k: int) -> Combinations:
    """Write each of ``vectors`` as a combination of at most ``k`` rows of ``atoms``.

    At each step the atom is taken that has the largest inner product with what is left, of two in one direction the longer one, and all
    coefficients are fitted anew by least squares. (The atom at the smallest angle was tried on embeddings: rows made so were worse
    at every k.) An atom that depends on those already taken gets the coefficient 0.

    *Shapes:* ``vectors`` ``(n, d)``, ``atoms`` ``(m, d)``, m at least ``k``, no row of atoms zero; both of any floating dtype.
    """
    import torch

    width = vectors.shape[1]
    norms = torch.cat([part.double().norm(dim=1) for part in torch.split(atoms, _rows(BLOCK_BYTES, width))])
    batches = torch.split(vectors, _rows(BATCH_BYTES, k * width))
    found = [_pursue(batch.double(), atoms, norms, k) for batch in batches]
    return Combinations(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _rows(nbytes: int, width: int) -> int:
    return max(nbytes // (8 * width), 1)


def _pursue(vectors: Tensor, atoms: Tensor, norms: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The atoms, coefficients and residuals of one batch of vectors.

    ``basis`` are the atoms taken so far made orthonormal, and ``triangle`` is what they are in it, so that the coefficients are those
    of a triangular system.
    """
    import torch

    count, width = vectors.shape
    chosen = torch.zeros(count, k, dtype=torch.int64)
    basis = torch.zeros(count, k, width, dtype=torch.float64)
    triangle = torch.zeros(count, k, k, dtype=torch.float64)
    shares = torch.zeros(count, k, dtype=torch.float64)
    lengths = vectors.norm(dim=1)
    rest, longest = vectors.clone(), float(norms.max())
    for step in range(k):
        best = _nearest(rest, atoms, longest, chosen[:, :step])
        direction, parts = _orthogonal(atoms[best].double(), basis[:, :step])
        length = direction.norm(dim=1)
        usable = (length > width * UNIT * norms[best]) & (rest.norm(dim=1) > width * UNIT * lengths)
        basis[:, step] = torch.where(usable[:, None], direction / length.clamp(min=1e-300)[:, None], 0.0)
        triangle[:, :step, step] = torch.where(usable[:, None], parts, 0.0)
        triangle[:, step, step] = torch.where(usable, length, 1.0)
        shares[:, step] = (basis[:, step] * rest).sum(1)
        rest -= shares[:, step, None] * basis[:, step]
        chosen[:, step] = best
    coefficients = torch.linalg.solve_triangular(triangle, shares[:, :, None], upper=True)[:, :, 0]
    return chosen, coefficients, rest.norm(dim=1) / lengths.clamp(min=1e-300)


def _nearest(rest: Tensor, atoms: Tensor, longest: float, taken: Tensor) -> Tensor:
    """The atom that has the largest inner product with each row of ``rest`` and is not among those ``taken``. *Shape:* ``(n,)``.

    Products, as shares of the length of the ``longest`` atom, are computed in float32 first. Only where the two largest are nearer to
    one another than what rounding can have done to them, they are computed once more in float64, so that the atom is always that of
    float64.
    """
    import torch

    single = SINGLE_RANGE[0] < longest < SINGLE_RANGE[1]
    if not single or torch.get_float32_matmul_precision() != "highest":
        return _two_largest(rest, atoms, longest, taken)[1]
    unit = (rest / rest.norm(dim=1, keepdim=True).clamp(min=1e-300)).float()
    largest, found = _two_largest(unit, atoms, longest, taken)
    error = (atoms.shape[1] + 6) * SINGLE_UNIT  # of a share: a sum of d products, and four roundings of what goes in
    doubtful = (largest[:, 0] - largest[:, 1] <= 2 * error).nonzero().flatten()
    if len(doubtful):
        found[doubtful] = _two_largest(rest[doubtful], atoms, longest, taken[doubtful])[1]
    return found


def _two_largest(rest: Tensor, atoms: Tensor, longest: float, taken: Tensor) -> tuple[Tensor, Tensor]:
    """The two largest sizes of the products of each row with atoms, as shares of ``longest``, and the atom of the first.

    They are computed in the dtype of ``rest``. *Shapes:* ``(n, 2)``, -1 where there is no other atom, and ``(n,)``.
    """
    import torch

    largest = rest.new_full((len(rest), 2), -1.0)
    found = torch.zeros(len(rest), dtype=torch.int64)
    step = _rows(BLOCK_BYTES, max(atoms.shape[1], len(rest)))
    for start in range(0, len(atoms), step):
        block = slice(start, start + step)
        sizes = (rest @ atoms[block].to(rest.dtype).T).abs_().div_(longest)
        inside = (taken >= start) & (taken < start + sizes.shape[1])
        row, place = inside.nonzero(as_tuple=True)
        sizes[row, taken[row, place] - start] = -1.0
        first, index = sizes.max(dim=1)
        second = sizes.scatter_(1, index[:, None], -1.0).amax(1)
        better = first > largest[:, 0]
        found = torch.where(better, index + start, found)
        lower = torch.minimum(first, largest[:, 0])
        largest = torch.stack(
            (torch.maximum(first, largest[:, 0]), torch.maximum(lower, second.maximum(largest[:, 1]))), 1
        )
    return largest, found


def _orthogonal(rows: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of ``rows`` without their parts in ``basis``, and these parts; taken out twice, since once is not enough.

    *Shapes:* ``rows`` ``(n, d)``, ``basis`` ``(n, s, d)``, parts ``(n, s)``. Source: Giraud, Langou and Rozložník 2005.
    """
    import torch

    rest, parts = rows, rows.new_zeros(basis.shape[:2])
    for _ in range(2):
        part = torch.bmm(basis, rest[:, :, None])[:, :, 0]
        rest = rest - torch.bmm(part[:, None], basis)[:, 0]
        parts = parts + part
    return rest, parts
