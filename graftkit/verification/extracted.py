"""An extracted adapter on its base, as peft loads them, beside the fine-tuned checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.peft.injection import NAME
from graftkit.errors import printable
from graftkit.verification.forward import load, run, undisturbed
from graftkit.verification.peft_loading import adapt
from graftkit.verification.reference import run_loaded

#: What rounding of the stored factors, and of their product in float32, may add to a lost share of energy.
SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class ExtractedReport:
    """What was compared. ``lost`` is the share of each linear's difference that the adapter lacks.

    ``missed`` is the largest relative distance of an output from the fine-tuned model's, ``effect`` that of the base.
    """

    lost: Mapping[str, float]
    tokens: int
    missed: float
    effect: float
    failures: tuple[str, ...]
    name: str = "extracted adapter against fine-tuned"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dataclasses.asdict(self)

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """``(check, result, figure)`` for a terminal."""
        verdict = "failed" if self.failures else "rounded"
        yield (
            "extracted differences",
            verdict,
            f"{len(self.lost)}, at most {max(self.lost.values()):.2g} of the energy lost",
        )
        figure = f"{self.tokens} tokens, {self.missed:.2g} off the fine-tuned model; the base is {self.effect:.2g} off"
        yield "outputs with adapter", "measured", figure


def compare_with_tuned(
    base: Path, tuned: Path, folder: Path, expected: Mapping[str, float], *, seed: int = 0
) -> ExtractedReport:
    """Compare ``base`` with the adapter of ``folder`` with ``tuned``. ``expected`` gives the most that each linear may lose.

    Raises:
        InputRejected, VerificationFailed: a checkpoint or the adapter does not load, or the forward needs inputs that
            cannot be made.
    """
    with undisturbed():
        wanted = load(tuned)
        reference = run_loaded(wanted, tuned, None, seed, None, {}, lambda _: None)
        adapted = adapt(load(base).model, folder)
        model = adapted.get_base_model().eval()
        lost = dict(_lost(model, wanted.model))
        failures = [
            f"differences: {printable(name)!r} loses {share:.3g} of its energy, expected was at most {expected.get(name, 0):.3g}"
            for name, share in lost.items()
            if not share <= expected.get(name, 0) * (1 + SLACK) + SLACK
        ]
        failures += [
            f"differences: the adapter has nothing for {printable(name)!r}" for name in expected.keys() - lost.keys()
        ]
        failures += list(_saved(model, wanted.model))
        missed = _distance(model, reference)
        with adapted.disable_adapter():
            effect = _distance(model, reference)
    tokens = sum(part.tokens for part in reference.parts)
    return ExtractedReport(lost, tokens, missed, effect, tuple(failures))


def _lost(model: Any, tuned: Any) -> Iterator[tuple[str, float]]:
    from peft.tuners.lora.layer import LoraLayer

    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            difference = (
                tuned.get_submodule(path).weight.detach().double() - module.get_base_layer().weight.detach().double()
            )
            energy = float(difference.square().sum())
            left = difference - module.get_delta_weight(NAME).detach().double()
            yield path, float(left.square().sum()) / (energy or 1.0)


def _saved(model: Any, tuned: Any) -> Iterator[str]:
    from peft.utils.other import ModulesToSaveWrapper

    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            theirs = tuned.get_submodule(path).state_dict()
            for name, value in module.modules_to_save[NAME].state_dict().items():
                if not value.equal(theirs[name]):
                    yield f"differences: {printable(f'{path}.{name}')!r} is not the fine-tuned checkpoint's"


def _distance(model: Any, reference: Any) -> float:
    """The largest relative root-mean-square distance of an output from the reference, over the probes."""
    largest = 0.0
    for part in reference.parts:
        found = run(model, part, reference.made)
        for name, old in reference.kept[part.name].items():
            wide = old.double().nan_to_num(0, 0, 0)
            change = found[name].double().nan_to_num(0, 0, 0) - wide
            largest = max(largest, float(change.norm() / (wide.norm() or 1.0)))
    return largest
