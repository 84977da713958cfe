"""New rows of a table: pure functions from statistics, seeds and old rows to float32 or float64 rows.

*Shapes:* every function returns ``(len(keys), d)``. Sampling is done in float32, one generator for each row, seeded by its
name (:mod:`graftkit.initializers.seeding`), so that a row's bits never depend on which other rows are made, or in what order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from graftkit.initializers.statistics import RowSource, TableStatistics

#: How many bytes of standard normal coefficients `mean_cov` holds at a time.
COEFFICIENT_BYTES = 128 << 20


def _gaussian(seed: int, size: int) -> Tensor:
    import torch

    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def mean(statistics: TableStatistics, count: int) -> Tensor:
    """The mean of the live rows, ``count`` times (Hewitt 2021)."""
    return statistics.mean.expand(count, -1)


def zeros(statistics: TableStatistics, count: int) -> Tensor:
    """Rows of zeros."""
    return statistics.mean.new_zeros(count, statistics.mean.numel())


def normal(statistics: TableStatistics, seeds: Sequence[int], std: float | None) -> Tensor:
    """Normal rows around zero with ``std``, or around the live rows' mean with their own spread when it is None."""
    import torch

    noise = torch.stack([_gaussian(seed, statistics.mean.numel()) for seed in seeds]).double()
    return noise * std if std is not None else statistics.mean + noise * statistics.std


def mean_cov(rows: RowSource, statistics: TableStatistics, seeds: Sequence[int], eps: float) -> Tensor:
    """Normal rows with the live rows' mean and ``eps`` times their covariance (Hewitt 2021).

    Without the d×d matrix: mu + sqrt(eps/m) · Σ g_i (e_i - mu) over the m live rows, streamed.
    """
    import torch

    batch = max(COEFFICIENT_BYTES // (4 * statistics.size), 1)
    made = []
    for first in range(0, len(seeds), batch):
        gaussians = torch.stack([_gaussian(seed, statistics.size) for seed in seeds[first : first + batch]])
        total = torch.zeros(len(gaussians), statistics.mean.numel(), dtype=torch.float64)
        for start, chunk in rows():
            keep = statistics.live[start : start + len(chunk)]
            centred = chunk[keep].double() - statistics.mean
            total += gaussians[:, start : start + len(chunk)][:, keep].double() @ centred
        made.append(statistics.mean + total * (eps / statistics.count) ** 0.5)
    return torch.cat(made)
