"""Rows of a table moved down the gradient of a loss: Adam, with moments and a number of steps of its own for each row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Of Adam (Kingma and Ba 2015).
BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass
class RowDescent:
    """Moves ``rows``, float32 ``(k, d)``, in place; what is no part of a step stays as it is, with its moments.

    So a row's steps depend on no other row but through the loss, and a row that stands in few texts is moved seldom.
    """

    rows: Tensor
    rate: float
    _mean: Tensor = field(init=False)
    _square: Tensor = field(init=False)
    _steps: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._mean, self._square = self.rows.new_zeros(self.rows.shape), self.rows.new_zeros(self.rows.shape)
        self._steps = self.rows.new_zeros(len(self.rows), 1)

    def step(self, places: Tensor, gradient: Tensor, share: float = 1.0) -> None:
        """Move the rows at ``places``, each once, against their ``gradient``, by ``share`` of the rate at most about.

        *Shapes:* ``places`` ``(n,)``, ``gradient`` ``(n, d)``.
        """
        first, second = BETAS
        steps = self._steps[places] + 1
        mean = self._mean[places] * first + gradient * (1 - first)
        square = self._square[places] * second + gradient.square() * (1 - second)
        self._steps[places], self._mean[places], self._square[places] = steps, mean, square
        size = (square / (1 - second**steps)).sqrt() + EPSILON
        self.rows[places] -= self.rate * share * (mean / (1 - first**steps)) / size
