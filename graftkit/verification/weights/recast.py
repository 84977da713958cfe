"""A checkpoint in another dtype beside the one that it was: each value the nearest, and outputs within what the dtype itself rounds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graftkit.checkpoint.reading import read_tensor, row_chunks
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import plural, printable
from graftkit.running.place import open_place
from graftkit.verification.checks import Report, Row
from graftkit.verification.comparison import NOISE_RATIO, finite, sum_of_squares
from graftkit.verification.promises import Scope
from graftkit.verification.weights.recast_noise import RecastNoise, recast_noise
from graftkit.verification.weights.replayed_steps import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.verification.subject import Subject

#: Significant bits, and the largest and the smallest exponent of a normal number, of each floating dtype.
FORMATS = {"F64": (53, 1023, -1022), "F32": (24, 127, -126), "BF16": (8, 127, -126), "F16": (11, 15, -14)}

#: Bytes of a tensor that are compared at a time.
PIECE = 4 << 20

OTHER_CHANGES = "other operations of the recipe change outputs too"


def holds(wide: str, narrow: str) -> bool:
    """Whether a floating dtype has every value of another; both are tags."""
    bits, most, least = FORMATS[wide]
    other_bits, other_most, other_least = FORMATS[narrow]
    # the smallest value of the other is subnormal there
    return bits >= other_bits and most >= other_most and least - bits <= other_least - other_bits


@dataclass(slots=True)
class Rounding:
    """What rounding did to the values of tensors so far; ``largest`` is relative, over values that did not become zero.

    ``squares`` and ``size`` are the sums of Δ² and of the source's squares.
    """

    values: int = 0
    changed: int = 0
    zeroed: int = 0
    wrong: int = 0
    largest: float = 0.0
    squares: float = 0.0
    size: float = 0.0

    @property
    def error(self) -> float:
        """The norm of the difference over that of the source."""
        return math.sqrt(self.squares / (self.size or 1.0))


@dataclass(frozen=True, slots=True)
class RecastReport(Report):
    """What became of the values of ``tensors``, and of the outputs; see :class:`Rounding`.

    ``error`` is the largest relative error of a tensor by its norm, ``unit`` the unit roundoff of the dtype. ``noise`` is None where
    outputs are not judged, for the reason in ``skipped``.
    """

    dtype: str
    tensors: int
    rounding: Rounding
    error: float
    unit: float
    exact: bool
    noise: RecastNoise | None
    skipped: str
    failures: tuple[str, ...]
    name: str = "cast"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        found = self.rounding
        share = f"{found.changed:,} of {found.values:,} values rounded ({found.changed / max(found.values, 1):.1%})"
        figure = f"{plural(self.tensors, 'tensor')}, {share}, each by at most {found.largest:.2g} of itself"
        figure += f"; {plural(found.zeroed, 'value')} became zero" if found.zeroed else ""
        verdict = "failed" if self.failures else "bitwise" if self.exact else "rounded"
        yield Row(
            f"weights in {self.dtype}",
            verdict,
            f"{plural(self.tensors, 'tensor')}, no value changed" if self.exact else figure,
        )
        if self.noise is None:
            yield Row(f"outputs in {self.dtype}", "not judged", self.skipped)
            return
        by = f"{self.noise.arithmetic:.2g} by arithmetic alone, {self.noise.weights:.2g} by weights alone"
        ratio = "" if self.exact else f"noise ratio {self.noise.ratio:.3g}: "
        yield Row(f"outputs in {self.dtype}", verdict, f"{ratio}{self.noise.total:.2g} off the source in float64, {by}")


@dataclass(frozen=True, slots=True)
class RecastCheck:
    """The tensors ``before`` a cast to ``dtype`` beside what was written; ``after`` is what they were planned to be.

    ``exact`` says that the dtype has every value of theirs, ``earlier_scope`` what of the outputs the operations before it left.
    """

    before: Mapping[str, LazyTensor] = field(repr=False)
    after: Mapping[str, LazyTensor] = field(repr=False)
    dtype: str
    exact: bool
    earlier_scope: Scope
    name: str = "cast"

    def applies(self, subject: Subject) -> bool:
        """Wherever something was written."""
        return subject.base_changed

    def run(self, subject: Subject) -> RecastReport:
        """Compare values, and outputs where nothing else changes them; what a later operation changed is compared as it was planned."""
        import torch

        written = open_place(subject.result).tensors
        unit = torch.finfo(getattr(torch, self.dtype)).eps / 2
        whole, worst, failures = Rounding(), 0.0, list[str]()
        for name, old in self.before.items():
            new = self.after[name] if name in subject.changed_later or name not in written else written[name]
            found = _rounding(old, new, whole)
            worst = max(worst, found.error)
            failures += _failures(name, found, unit)
        noise, skipped = self._noise(subject) if not failures else (None, "the weights are wrong")
        if noise is not None and not self.exact and not noise.ratio <= NOISE_RATIO:
            failures.append(
                f"cast: outputs in {self.dtype} are {noise.total:.3g} off the source's in float64, {noise.ratio:.3g} times what its"
                f" arithmetic does by itself, above {NOISE_RATIO:g}: the rounded weights do more than that"
            )
        return RecastReport(
            self.dtype, len(self.before), whole, worst, unit, self.exact, noise, skipped, tuple(failures)
        )

    def _noise(self, subject: Subject) -> tuple[RecastNoise | None, str]:
        if not subject.runs:
            return None, subject.not_run
        if self.earlier_scope | subject.later_scope:
            return None, OTHER_CHANGES
        return recast_noise(subject), ""


def _rounding(old: LazyTensor, new: LazyTensor, whole: Rounding) -> Rounding:
    """What became of one tensor, which is added to the ``whole``."""
    found = Rounding()
    for a, b in _pieces(old, new):
        _add(found, a, b)
    for name in ("values", "changed", "zeroed", "wrong", "squares", "size"):
        setattr(whole, name, getattr(whole, name) + getattr(found, name))
    whole.largest = max(whole.largest, found.largest)
    return found


def _pieces(old: LazyTensor, new: LazyTensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Corresponding values of both, as many rows at a time as are a bounded piece of the old."""
    if not old.shape:
        yield read_tensor(old), read_tensor(new)
        return
    rows = old.shape[0]
    widths = [tensor.nbytes // max(rows, 1) for tensor in (old, new)]
    step = max(PIECE // max(widths[0], 1), 1)
    pairs = zip(
        *(row_chunks(t, 0, rows, step * width) for t, width in zip((old, new), widths, strict=True)), strict=True
    )
    for (_, a), (_, b) in pairs:
        yield a, b


def _add(found: Rounding, old: Tensor, new: Tensor) -> None:
    wide, now = old.double(), new.double()
    wanted = nearest(wide, new.dtype).double()
    same = (wanted == now) | (wanted.isnan() & now.isnan())
    gap = finite(now - wide)
    live = (now != 0) & (now != wide) & now.isfinite() & wide.isfinite()
    found.values += old.numel()
    found.wrong += int((~same).sum())
    found.changed += int(((now != wide) & ~(now.isnan() & wide.isnan())).sum())
    found.zeroed += int(((now == 0) & (wide != 0)).sum())
    found.largest = max(found.largest, float((gap[live] / wide[live]).abs().max()) if live.any() else 0.0)
    found.squares += sum_of_squares(gap)
    found.size += sum_of_squares(wide)


def _failures(name: str, found: Rounding, unit: float) -> Iterator[str]:
    tensor = f"cast: tensor {printable(name)!r}"
    if found.wrong:
        yield f"{tensor} does not hold the nearest values, at {found.wrong:,} of {found.values:,}"
    elif found.error > unit:
        yield (
            f"{tensor} lost {found.error:.2g} of its norm, more than the {unit:.2g} that rounding explains: {found.zeroed:,} of"
            f" {found.values:,} values are too small and became zero, others lost digits; take bfloat16, which reaches further"
        )
