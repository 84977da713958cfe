"""An extracted adapter on its base, as peft loads them, beside the fine-tuned checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.architecture.peft.parts import SavedPart, adapter_parts, lora_parts
from graftkit.checkpoint.adapter import AdapterPlace
from graftkit.errors import plural, printable
from graftkit.running.forward import load, undisturbed
from graftkit.running.peft_loading import adapt
from graftkit.running.place import Place
from graftkit.running.reference import run_loaded
from graftkit.verification.adapters.factor_rounding import WIDE, stored
from graftkit.verification.checks import LoadsModels, Report, Row
from graftkit.verification.comparison import compare_runs
from graftkit.verification.subject import Subject

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class ExtractedReport(Report):
    """What was compared. ``lost`` is the share of each linear's difference that the adapter lacks, by energy, ``allowed`` the most.

    ``missed`` is the largest relative root-mean-square distance of an output from the fine-tuned model's, ``effect`` that of the base.
    """

    lost: Mapping[str, float]
    allowed: Mapping[str, float]
    tokens: int
    missed: float
    effect: float
    failures: tuple[str, ...]
    name: str = "extracted adapter against fine-tuned"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        verdict = "failed" if self.failures else "rounded"
        worst = max(self.lost, key=lambda name: self.lost[name], default="")
        figure = f"{len(self.lost)}, at most {self.lost.get(worst, 0):.2g} of the energy lost, {self.allowed.get(worst, 0):.2g} allowed"
        yield Row("extracted differences", verdict, figure)
        figure = f"{plural(self.tokens, 'token')}, {self.missed:.2g} off the fine-tuned model; the base is {self.effect:.2g} off"
        yield Row("outputs with adapter", "measured", figure)


@dataclass(frozen=True, slots=True)
class ExtractCheck(LoadsModels):
    """The extracted adapter beside the fine-tuned checkpoint; ``expected`` gives the most that each linear may lose."""

    tuned: Path
    expected: Callable[[], Mapping[str, float]]
    name: str = "extracted adapter against fine-tuned"

    def run(self, subject: Subject) -> ExtractedReport:
        """See :func:`compare_with_tuned`."""
        if subject.adapter is None:
            raise ValueError("there is no adapter")
        return compare_with_tuned(subject.result, self.tuned, subject.adapter, self.expected(), seed=subject.seed)


def compare_with_tuned(
    base: Place, tuned: Path, adapter: AdapterPlace, expected: Mapping[str, float], *, seed: int = 0
) -> ExtractedReport:
    """Compare ``base`` with ``adapter`` with ``tuned``. ``expected`` gives the least that each linear must lose.

    What may be lost beyond that is the rounding of the stored factors, and of their making in float64.

    Raises:
        InputRejected, VerificationFailed: a checkpoint or the adapter does not load, or the forward needs inputs that
            cannot be made.
    """
    with undisturbed():
        wanted = load(tuned)
        reference = run_loaded(wanted, tuned, None, seed, None, {}, lambda _: None)
        adapted = adapt(load(base).model, adapter)
        model = adapted.get_base_model().eval()
        found = {name: (lost, allowed) for name, lost, allowed in _lost(model, wanted.model, expected)}
        failures = [
            f"differences: {printable(name)!r} loses {lost:.3g} of its energy, {allowed:.3g} is allowed"
            for name, (lost, allowed) in found.items()
            if not lost <= allowed
        ]
        failures += [
            f"differences: the adapter has nothing for {printable(name)!r}" for name in expected.keys() - found.keys()
        ]
        failures += list(_saved(model, wanted.model))
        missed = compare_runs(model, reference).worst
        with adapted.disable_adapter():
            effect = compare_runs(model, reference).worst
    tokens = sum(part.tokens for part in reference.parts)
    lost, allowed = ({name: pair[side] for name, pair in found.items()} for side in (0, 1))
    return ExtractedReport(lost, allowed, tokens, missed, effect, tuple(failures))


def _lost(model: nn.Module, tuned: nn.Module, expected: Mapping[str, float]) -> Iterator[tuple[str, float, float]]:
    """Yield ``(name, lost, allowed)``: shares of the energy of each linear's difference.

    Factors come from the eigenvectors of a Gram matrix in float64: for each direction, the rounding of its sums may be lost, and
    twice as much counts as empty. Then both are rounded to their dtype.
    """
    for part in lora_parts(model):
        new, old = (
            owner.get_parameter("weight").detach().double() for owner in (tuned.get_submodule(part.path), part.base)
        )
        a, b = part.wide_factors()
        difference = new - old
        energy = float(difference.square().sum())
        lost = float((difference - part.update()).square().sum())
        made = 3 * sum(difference.shape) * len(a) * WIDE
        rounding = abs(part.scaling) * stored(a, b, (part.a.dtype, part.b.dtype)) / math.sqrt(energy or 1.0)
        allowed = (math.sqrt(expected.get(part.path, 0.0) + made) + rounding) ** 2
        yield part.path, lost / (energy or 1.0), allowed


def _saved(model: nn.Module, tuned: nn.Module) -> Iterator[str]:
    for part in adapter_parts(model):
        if isinstance(part, SavedPart):
            theirs = tuned.get_submodule(part.path).state_dict()
            for name, value in part.module.state_dict().items():
                if not value.equal(theirs[name]):
                    yield f"differences: {printable(f'{part.path}.{name}')!r} is not the fine-tuned checkpoint's"
