"""Noise: what the arithmetic of a checkpoint's own dtype does to its outputs, beside what the surgery did.

Every run is compared with the source in float64: rho = err(run) / err(source in its own dtype). The surgery is lost
in the noise where its rho is that of the null runs, which change nothing over the real numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from graftkit.running.bits import equal
from graftkit.verification.comparison import Difference, Outputs, finite, pieces, sum_of_squares
from graftkit.verification.lens.gap import largest
from graftkit.verification.lens.source_outputs import SourceOutputs

if TYPE_CHECKING:
    from torch import Tensor

#: Quantiles of the KL that are reported.
QUANTILES = (0.5, 0.9, 0.99)

#: How many of the worst positions are listed.
WORST = 5


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(source ‖ run) in nats over positions, and ``largest``, the largest difference of a logit.

    ``flips`` counts changed top-1 ids, ``flips_beyond_noise`` those whose margin is more than twice the largest difference of
    any null run.
    """

    positions: int
    mean: float
    max: float
    quantiles: Mapping[str, float]
    largest: float
    flips: int
    flips_beyond_noise: int


@dataclass(frozen=True, slots=True)
class RunNoise:
    """One run. ``error`` is its relative RMS error against the source in float64, ``rho`` that over the source's own.

    ``rho`` is taken over the probes that the run was made on, and None where the source's own error is 0 and its own is not.
    """

    run: str
    error: float
    rho: float | None
    divergence: Divergence | None


@dataclass(frozen=True, slots=True)
class PlaceNoise:
    """KL between the two checkpoints in their own dtype: over the positions of one probe, or at one position."""

    probe: str
    row: int | None
    place: int | None
    positions: int
    mean: float
    max: float
    flips: int


@dataclass(frozen=True, slots=True)
class Noise:
    """All runs, source first; the result's KL by probe, by place in the sequence (in powers of two) and at the worst positions."""

    runs: tuple[RunNoise, ...]
    probes: tuple[PlaceNoise, ...]
    places: tuple[PlaceNoise, ...]
    worst: tuple[PlaceNoise, ...]


@dataclass(slots=True)
class _Tally(Difference):
    """One run's difference from the source in float64; ``own`` sums the squares of the source's own."""

    own: float = 0.0
    kl: list[Tensor] = field(default_factory=list)
    margins: list[Tensor] = field(default_factory=list)
    where: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    def rho(self) -> float | None:
        if self.squares == self.own:
            return 1.0
        return (self.squares / self.own) ** 0.5 if self.own else None


class NoiseTally:
    """Collects runs probe by probe."""

    def __init__(self) -> None:
        self._tallies: dict[str, _Tally] = {}
        self._nulls: set[str] = set()

    def add(self, run: str, source: SourceOutputs, found: Outputs, *, null: bool = False) -> None:
        """Take up one run's outputs. ``null`` runs change nothing over the real numbers."""
        for name in source.names:
            values = source.pair(name, found, of_source=null)
            if values is None:
                continue
            truth, old, new = values
            tally = self._tallies.setdefault(run, _Tally())
            if null:
                self._nulls.add(run)
            size, own = source.sizes(name, truth, old)
            tally.size += size
            tally.own += own
            reference = truth if source.wide else old
            same = new is reference or equal(reference, new)
            tally.squares += _squares(truth, new) if not same else 0.0 if source.wide else own
            if source.has_ids[name]:
                if same:
                    _agree(tally, len(new))
                else:
                    _diverge(tally, source.summary(name, reference), reference, new)
                tally.where.append((source.probe.name, *source.positions(name)))

    def report(self, result: str) -> Noise:
        """Everything collected; ``result`` is the name of the result's run in its own dtype."""
        floor = max((self._tallies[name].largest for name in self._nulls), default=0.0)
        runs = tuple(
            RunNoise(name, tally.error if tally.size else 0.0, tally.rho(), _divergence(tally, floor))
            for name, tally in self._tallies.items()
        )
        places = list(_by_position(self._tallies.get(result, _Tally())))
        return Noise(runs, tuple(_by_probe(places)), tuple(_by_place(places)), tuple(_worst(places)))


def _squares(truth: Tensor, new: Tensor) -> float:
    """The summed squared error; infinite where ``new`` alone is NaN."""
    found = 0.0
    for a, b in zip(pieces(truth), pieces(new), strict=True):
        squares = float(torch.linalg.vector_norm(b - a)) ** 2
        if math.isfinite(squares):
            found += squares
        elif (b.isnan() & ~a.isnan()).any():
            return math.inf
        else:
            found += sum_of_squares(b - a)
    return found


def _agree(tally: _Tally, positions: int) -> None:
    """Note that the distributions at so many positions are the same."""
    tally.kl.append(torch.zeros(positions, dtype=torch.float64))
    tally.margins.append(torch.full((positions,), -1.0, dtype=torch.float64))


def _diverge(tally: _Tally, summary: tuple[Tensor, Tensor, Tensor], old: Tensor, new: Tensor) -> None:
    """Note KL, largest difference and flips at every position. With p = softmax(old), KL = sum p (old - new) + lse' - lse."""
    sums, top, margin = summary
    start = 0
    for a, b in zip(pieces(old), pieces(new), strict=True):
        part = slice(start, start + len(a))
        start += len(a)
        gap = a - b
        most = largest(gap)
        if not math.isfinite(most):
            gap = finite(gap)
            most = largest(gap)
        kl = torch.linalg.vecdot(a.softmax(-1), gap) + b.logsumexp(-1) - sums[part]
        tally.kl.append(kl.clamp(min=0).cpu())
        tally.largest = max(tally.largest, most)
        tally.margins.append(torch.where(b.argmax(-1) == top[part], -1.0, margin[part]).cpu())


def _divergence(tally: _Tally, floor: float) -> Divergence | None:
    if not tally.kl:
        return None
    kl, margins = torch.cat(tally.kl), torch.cat(tally.margins)
    quantiles = {f"{q:g}": float(kl.quantile(q)) for q in QUANTILES}
    return Divergence(
        len(kl), float(kl.mean()), float(kl.max()), quantiles, tally.largest,
        int((margins >= 0).sum()), int((margins > 2 * floor).sum()),
    )  # fmt: skip


def _by_position(tally: _Tally) -> Iterator[tuple[str, int, int, float, bool]]:
    if not tally.kl:
        return
    kl, flips = torch.cat(tally.kl).tolist(), (torch.cat(tally.margins) >= 0).tolist()
    where = [
        (name, row, place)
        for name, rows, places in tally.where
        for row, place in zip(rows.tolist(), places.tolist(), strict=True)
    ]
    for (name, row, place), value, flip in zip(where, kl, flips, strict=True):
        yield name, row, place, value, flip


def _summary(
    probe: str, row: int | None, place: int | None, items: list[tuple[str, int, int, float, bool]]
) -> PlaceNoise:
    values = [value for *_, value, _ in items]
    return PlaceNoise(
        probe, row, place, len(items), sum(values) / len(values), max(values), sum(item[-1] for item in items)
    )


def _by_probe(items: list[tuple[str, int, int, float, bool]]) -> Iterator[PlaceNoise]:
    groups: dict[str, list[tuple[str, int, int, float, bool]]] = {}
    for item in items:
        groups.setdefault(item[0].partition(" [")[0], []).append(item)
    for name, group in groups.items():
        yield _summary(name, None, None, group)


def _by_place(items: list[tuple[str, int, int, float, bool]]) -> Iterator[PlaceNoise]:
    """Places 0, 1, 2-3, 4-7, ...: ``place`` is the first of the range."""
    groups: dict[int, list[tuple[str, int, int, float, bool]]] = {}
    for item in items:
        groups.setdefault(item[2].bit_length(), []).append(item)
    for bits in sorted(groups):
        yield _summary("all", None, 1 << (bits - 1) if bits else 0, groups[bits])


def _worst(items: list[tuple[str, int, int, float, bool]]) -> Iterator[PlaceNoise]:
    for item in sorted(items, key=lambda item: -item[3])[:WORST]:
        yield _summary(*item[:3], [item])
