"""Tensors that hold what they held multiplied by a number: each value the nearest, and outputs within what the dtype itself rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graftkit.architecture.axis_maps import AxisMaps
from graftkit.checkpoint.reading import read_tensor
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import plural, printable
from graftkit.running.place import open_place
from graftkit.verification.checks import Report, Row
from graftkit.verification.comparison import NOISE_RATIO, sum_of_squares
from graftkit.verification.weights.recast import OTHER_CHANGES
from graftkit.verification.weights.recast_noise import RecastNoise, recast_noise
from graftkit.verification.weights.replayed_steps import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class Scaled:
    """One tensor on disk before and, as it was planned, after its values were multiplied, with the maps that say by what."""

    old: LazyTensor = field(repr=False)
    planned: LazyTensor = field(repr=False)
    maps: AxisMaps

    def values(self, written: LazyTensor | None) -> tuple[Tensor, Tensor]:
        """What the old values were multiplied to, in float64, and what stands there; as planned where it was changed later."""
        usable = written is not None and written.shape == self.planned.shape
        old, new = read_tensor(self.old), read_tensor(written if written is not None and usable else self.planned)
        for axis, indices in self.maps.axes:
            old, new = indices.of_source(old, axis), indices.of_result(new, axis)
        return self.maps.scaled(old), new


@dataclass(frozen=True, slots=True)
class RescaledReport(Report):
    """What became of the old values of ``tensors``: ``rounded`` of ``values`` are not just what they were multiplied to.

    ``error`` is the largest relative error of a tensor by its norm. ``noise`` is None where outputs are not judged, for the reason in
    ``skipped``.
    """

    tensors: int
    values: int
    rounded: int
    error: float
    noise: RecastNoise | None
    skipped: str
    failures: tuple[str, ...]
    name: str = "rescaled"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        verdict = "failed" if self.failures else "rounded" if self.rounded else "exact"
        share = (
            f"{self.rounded:,} of {self.values:,} values rounded, off by at most {self.error:.2g} of a tensor's norm"
        )
        figure = share if self.rounded else "no value had to be rounded"
        yield Row("rescaled weights", verdict, f"{plural(self.tensors, 'tensor')}, {figure}")
        if self.noise is None:
            yield Row("outputs of rescaled weights", "not judged", self.skipped)
            return
        by = f"{self.noise.arithmetic:.2g} by arithmetic alone, {self.noise.weights:.2g} by weights alone"
        figure = f"noise ratio {self.noise.ratio:.3g}: {self.noise.total:.2g} off the source in float64, {by}"
        yield Row("outputs of rescaled weights", verdict, figure)


@dataclass(frozen=True, slots=True)
class RescaledCheck:
    """The old values of tensors, by name on disk, beside what was written; ``alone`` says that nothing before changes outputs."""

    tensors: Mapping[str, Scaled] = field(repr=False)
    alone: bool
    name: str = "rescaled"

    def applies(self, subject: Subject) -> bool:
        """Wherever something was written."""
        return subject.base_changed

    def run(self, subject: Subject) -> RescaledReport:
        """Compare values, and outputs where nothing else changes them; what was changed later is compared as it was planned."""
        written, failures = open_place(subject.result).tensors, list[str]()
        values, rounded, worst = 0, 0, 0.0
        for name, one in self.tensors.items():
            exact, new = one.values(None if name in subject.changed_later else written.get(name))
            wrong = int((nearest(exact, new.dtype) != new).sum())
            values, rounded = values + new.numel(), rounded + int((new.double() != exact).sum())
            worst = max(worst, (sum_of_squares(new.double() - exact) / (sum_of_squares(exact) or 1.0)) ** 0.5)
            if wrong:
                failures.append(
                    f"rescaled: tensor {printable(name)!r} does not hold its old values times {one.maps.scale:.6g}, rounded to the"
                    f" nearest, at {wrong:,} of {new.numel():,}"
                )
        noise, skipped = self._noise(subject, rounded) if not failures else (None, "the weights are wrong")
        if noise is not None and not noise.ratio <= NOISE_RATIO:
            failures.append(
                f"rescaled: outputs are {noise.total:.3g} off the source's in float64, {noise.ratio:.3g} times what the dtype's"
                f" arithmetic does by itself, above {NOISE_RATIO:g}: the rounded weights do more than that"
            )
        return RescaledReport(len(self.tensors), values, rounded, worst, noise, skipped, tuple(failures))

    def _noise(self, subject: Subject, rounded: int) -> tuple[RecastNoise | None, str]:
        if not rounded:
            return None, "nothing was rounded"
        if not subject.runs:
            return None, subject.not_run
        if not self.alone or not subject.later_scope.same_outputs:
            return None, OTHER_CHANGES
        return recast_noise(subject), ""
