"""New rows beside the trained rows of their table: norms, nearest neighbours, and how alike the new ones are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftkit.initializers.statistics import RowSource

if TYPE_CHECKING:
    from torch import Tensor

#: So many new rows are looked at one by one; of the others only the norms count.
SHOWN = 64

#: Neighbours named for each of them.
NEIGHBOURS = 3

#: Bars of the histogram of norms, and the quantiles that are given of it.
BARS = 40
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def compare_rows(old: RowSource, size: int, new: Tensor, ids: list[int]) -> dict[str, Any]:
    """Compare ``new`` rows, of the ids ``ids``, with the first ``size`` rows of their table, in one streamed pass.

    Norms are Euclidean. ``rank`` is the share of old rows with a smaller norm, ``neighbours`` are the old rows of the largest
    cosine, and ``twin`` is the largest cosine with another new row among those shown, None where there is none.

    *Shapes:* ``new`` ``(k, d)``; both sides are widened to float32.
    """
    import torch

    rows = new.float()
    norms = torch.linalg.vector_norm(rows, dim=1)
    shown = min(len(rows), SHOWN)
    units = _units(rows[:shown], norms[:shown])
    old_norms = torch.empty(size)
    best, where = torch.full((shown, 0), 0.0), torch.zeros(shown, 0, dtype=torch.int64)
    for start, chunk in old():
        wide = chunk.float()
        lengths = torch.linalg.vector_norm(wide, dim=1)
        old_norms[start : start + len(chunk)] = lengths
        cosine = (units @ wide.T) / lengths.clamp(min=torch.finfo(torch.float32).tiny)
        kept = torch.topk(cosine, min(NEIGHBOURS, len(chunk)), dim=1)
        best, where = torch.cat([best, kept.values], 1), torch.cat([where, kept.indices + start], 1)
        kept = torch.topk(best, min(NEIGHBOURS, best.shape[1]), dim=1)
        best, where = kept.values, where.gather(1, kept.indices)
    twins = _twins(units)
    every = torch.cat([old_norms, norms])
    every = every[every.isfinite()]
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    return {
        "old_norms": _spread(old_norms, low, high),
        "new_norms": _spread(norms, low, high),
        "rows": [
            {
                "id": ids[place],
                "norm": float(norms[place]),
                "rank": float((old_norms < norms[place]).double().mean()),
                "twin": twins[place] if twins else None,
                "neighbours": [
                    {"id": index, "cosine": value}
                    for index, value in zip(where[place].tolist(), best[place].tolist(), strict=True)
                ],
            }
            for place in range(shown)
        ],
    }


def _units(rows: Tensor, norms: Tensor) -> Tensor:
    """Rows of length 1; a zero row stays zero."""
    return rows / norms.clamp(min=1e-30)[:, None]


def _twins(units: Tensor) -> list[float]:
    if len(units) < 2:
        return []
    cosines = units @ units.T
    cosines.fill_diagonal_(-2.0)
    found: list[float] = cosines.max(1).values.tolist()
    return found


def _spread(norms: Tensor, low: float, high: float) -> dict[str, Any]:
    """Quantiles, and a histogram of equal bars from ``low`` to ``high``, of what is finite."""
    import torch

    high = high if high > low else low + max(abs(low), 1.0) * 1e-6
    finite = norms[norms.isfinite()]
    # torch.quantile takes no more than 2^24 values; sorted positions take any number.
    ordered = finite.sort().values
    places = [round(q * (len(ordered) - 1)) for q in QUANTILES] if len(ordered) else []
    return {
        "count": len(norms),
        "quantiles": {f"{q:g}": float(ordered[place]) for q, place in zip(QUANTILES, places, strict=False)},
        "low": low,
        "high": high,
        "counts": [int(n) for n in torch.histc(finite, BARS, low, high)],
    }
