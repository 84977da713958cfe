"""What the lens found, as rows, sentences and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from graftkit.errors import plural
from graftkit.verification.checks import Report, Row
from graftkit.verification.lens.floor import Floor
from graftkit.verification.lens.noise import Noise, RunNoise

#: The names of the runs in the noise report.
SOURCE, RESULT, EXACT = "source", "result", "result in float64"


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """The first module, in the order of the source's calls, whose output differs in float64 by more than the threshold.

    ``gap`` is relative to the RMS of the source's output there; ``tensors`` are the module's own that differ, ``unlike`` says
    what cannot be compared; ``reaches`` tells whether the model's own outputs differ as well; ``shown`` is the module with its name in
    the result where that is another.
    """

    module: str
    gap: float
    probe: str
    tensors: tuple[str, ...]
    unlike: str
    reaches: bool
    shown: str = ""

    def sentence(self) -> str:
        """Where, how much, and why if the module's own tensors tell."""
        what = self.unlike or f"differs by {self.gap:.3g} of its RMS on probe {self.probe!r}"
        why = f"; {', '.join(self.tensors)} differs" if self.tensors else "; its own tensors are equal"
        return f"{self.shown or self.module or 'the model itself'} {what}{why}"


@dataclass(frozen=True, slots=True)
class LensReport(Report):
    """Everything that the lens measured. ``failures`` is empty when source and result are equal where that is promised.

    ``probes`` gives unmasked tokens (or another ``unit``) by probe.
    ``outputs`` are relative differences in float64 by output, ``modules`` by
    module in the order of the calls; both are the largest of all probes. ``measured`` says that differences are expected, ``paged``
    that parameters were read from the files as the forwards asked for them.
    """

    architecture: str
    dtype: str
    device: str
    probes: Mapping[str, int]
    skipped: Mapping[str, str]
    floor: Floor
    outputs: Mapping[str, float]
    modules: Mapping[str, float]
    first: FirstDifference | None
    noise: Noise
    seconds: Mapping[str, float]
    failures: tuple[str, ...]
    measured: bool = False
    paged: bool = False
    unit: str = "tokens"
    derived: ClassVar[tuple[str, ...]] = ("largest",)

    @property
    def name(self) -> str:
        """The key in the report."""
        return "lens"

    @property
    def largest(self) -> float:
        """The largest relative difference of any output in float64."""
        return max(self.outputs.values(), default=0.0)

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        tokens = sum(self.probes.values())
        how = ", parameters paged in from the files" if self.paged else ""
        yield Row("lens", "run", f"{tokens:,} {self.unit} in float64 and in {self.dtype}, on {self.device}{how}")
        for name, reason in self.skipped.items():
            yield Row(f"lens probe {name!r}", "not run", f"the source refuses it: {reason}")
        yield Row(
            "float64 floor",
            f"{self.floor.height:.1e}",
            f"differences count from {self.floor.threshold:.1e} of the RMS",
        )
        if self.floor.narrow:
            places = [f"{operator} in {module or 'the model'}" for operator, module, _ in self.floor.narrow]
            yield Row("stays below float64", f"{len(places)} operators", ", ".join(places[:3]))
        yield Row(
            "outputs in float64",
            self._verdict(),
            f"max |Δ| {self.largest:.3g} of the RMS over {plural(len(self.outputs), 'output')}",
        )
        if self.first is not None:
            result = "reaches the outputs" if self.first.reaches else "inside only"
            yield Row("first difference", result, self.first.sentence())
        yield from _noise_rows(self.noise, self.dtype)

    def _verdict(self) -> str:
        if self.largest == 0:
            return "bitwise"
        if self.largest <= self.floor.threshold:
            return "equal to the floor"
        return "measured" if self.measured else "failed"


def _noise_rows(noise: Noise, dtype: str) -> Iterator[Row]:
    runs = {run.run: run for run in noise.runs}
    if RESULT not in runs:
        return
    nulls = [run for run in noise.runs if run.run not in (SOURCE, RESULT, EXACT)]
    beside = ", ".join(f"{run.run} {_rho(run)}" for run in nulls)
    yield Row(
        f"noise of {dtype}",
        f"rho {_rho(runs[RESULT])}",
        f"source err {runs[SOURCE].error:.2g}; null rho: {beside or 'none'}",
    )
    found = runs[RESULT].divergence
    if found is None:
        return
    most = max((run.divergence.max for run in nulls if run.divergence), default=0.0)
    yield Row(
        "KL(source, result)",
        f"max {found.max:.3g}",
        f"mean {found.mean:.3g}, 99 % {found.quantiles['0.99']:.3g}; null max {most:.3g}",
    )
    yield Row(
        "top-1 flips",
        f"{found.flips_beyond_noise} beyond noise",
        f"{found.flips} in all, at {found.positions:,} positions",
    )


def _rho(run: RunNoise) -> str:
    return "-" if run.rho is None else f"{run.rho:.3g}"
