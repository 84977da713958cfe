"""A base with an adapter as peft loads it: what a merged checkpoint is compared with.

Two instruments. Each merged weight is compared with peft's own merge in float64: what is left must be the rounding of its
dtype, and must not lean towards what the adapter adds. And the outputs of both are compared with the adapted model's in
float64: the merged model's error may be at most twice the adapted one's own.
"""

from __future__ import annotations

import dataclasses
import gc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.skeleton import one_line
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import few
from graftkit.verification.distribution import UNIT_ROUNDOFF
from graftkit.verification.forward import Loaded, load, run, undisturbed
from graftkit.verification.merged_weights import WeightComparison, compare_weights
from graftkit.verification.peft_loading import load_adapted
from graftkit.verification.reference import Reference, run_loaded

#: Experts with adapters on them are held in float64 while the reference is made, up to this size.
FUSED_BYTES = 4 << 30

#: What cached decoding puts before the names of its outputs.
STEP = re.compile(r"^step \d+ ")

#: The bound on the noise ratio.
NOISE_RATIO = 2.0

#: Noise below so many units of rounding counts as so much: in float32 (False) and in half precision (True).
FLOOR = {False: 16.0, True: 4.0}


@dataclass(frozen=True, slots=True)
class OutputNoise:
    """One output: relative root-mean-square errors against the adapted model in float64."""

    name: str
    adapted: float
    merged: float

    @property
    def ratio(self) -> float:
        """The noise ratio; 1 says that merging adds nothing to the arithmetic's own noise."""
        return self.merged / self.adapted


@dataclass(frozen=True, slots=True)
class AdaptedReport:
    """What was compared with the base and the adapter as peft loads them. ``skipped`` says what was not, and why."""

    weights: tuple[WeightComparison, ...]
    outputs: tuple[OutputNoise, ...]
    tokens: int
    skipped: tuple[str, ...]
    failures: tuple[str, ...]
    name: str = "merged against adapted"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        outputs = [{**dataclasses.asdict(output), "ratio": output.ratio} for output in self.outputs]
        return {**dataclasses.asdict(self), "outputs": outputs}

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """``(check, result, figure)`` for a terminal."""
        verdict = "failed" if self.failures else "rounded"
        if self.weights:
            rounding = max(weight.rounding for weight in self.weights)
            leaning = max(weight.leaning for weight in self.weights)
            figure = (
                f"{len(self.weights)}, at most {rounding:.2g} roundings off float64, {leaning:.1g} of the change lost"
            )
            yield "merged weights", verdict, figure
        if self.outputs:
            worst = max(self.outputs, key=lambda output: output.ratio)
            figure = f"{self.tokens} tokens, noise ratio at most {worst.ratio:.3g} ({worst.merged:.2g} / {worst.adapted:.2g})"
            yield "outputs beside peft", verdict, figure
        for reason in self.skipped:
            yield "not compared", "skipped", reason


def compare_with_adapted(
    source: Path, result: Path, folder: Path, *, base: Checkpoint | None = None, seed: int = 0
) -> AdaptedReport:
    """Compare the merged checkpoint ``result`` with ``source`` and the adapter of ``folder``, unmerged.

    Raises:
        InputRejected, VerificationFailed: a checkpoint or the adapter does not load, or the forward needs inputs that
            cannot be made.
    """
    skipped: list[str] = []
    with undisturbed():
        adapted = load_adapted(source, folder, base)
        merged = load(result)
        weights = tuple(compare_weights(adapted.model, merged.model, skipped))
        del merged
        gc.collect()
        native = run_loaded(adapted, source, None, seed, None, {}, lambda _: None)
        reference = _in_float64(adapted.model, native, skipped)
        del adapted
        gc.collect()
        outputs, broken = _outputs(load(result), native, reference)
    failures = [weight.failure for weight in weights if weight.failure] + broken
    failures += [
        f"outputs: {item.name} of the merged model is {item.merged:.3g} off the adapted model in float64, which itself"
        f" rounds by {item.adapted:.3g}: a noise ratio of {item.ratio:.3g}, above {NOISE_RATIO:g}"
        for item in outputs
        if item.ratio > NOISE_RATIO
    ]
    tokens = sum(part.tokens for part in native.parts)
    return AdaptedReport(weights, tuple(outputs), tokens, tuple(skipped), tuple(failures))


def _in_float64(model: Any, native: Reference, skipped: list[str]) -> dict[str, dict[str, Any]]:
    """The outputs of every probe in true float64; empty where the class cannot be run so."""
    from peft.tuners.lora.layer import ParamWrapper

    from graftkit.verification.lens.float64 import float64

    # peft registers what it adds to a parameter of experts as a parametrization, which must keep the parameter's dtype.
    fused = [module for module in model.modules() if isinstance(module, ParamWrapper)]
    size = sum(parameter.numel() for module in fused for parameter in module.parameters())
    if 8 * size > FUSED_BYTES:
        skipped.append(f"outputs in float64: adapted experts of {size:,} elements are too many to be held in float64")
        return {}
    try:
        for module in fused:
            module.double()
        with float64(model):
            return {part.name: run(model, part, native.made) for part in native.parts}
    except Exception as error:  # noqa: BLE001 - a class with kernels that know no float64
        skipped.append(f"outputs in float64: {one_line(error)}")
        return {}


def _outputs(
    merged: Loaded, native: Reference, reference: dict[str, dict[str, Any]]
) -> tuple[list[OutputNoise], list[str]]:
    """Errors of the adapted and of the merged model, over all probes; a finite forward is asked for in any case."""
    sums: dict[str, list[float]] = {}
    for part in native.parts:
        try:
            found = run(merged.model, part, native.made)
        except Exception as error:  # noqa: BLE001 - whatever the forward raises is the finding
            return [], [f"outputs: the merged model's forward fails on probe {part.name!r}: {one_line(error)}"]
        other = native.names[part.name] ^ found.keys()
        if other:
            return [], [f"outputs: only one of adapted and merged model gives these outputs: {few(other)}"]
        mask = part.mask.bool()
        for name, exact in reference.get(part.name, {}).items():
            if name not in native.kept[part.name]:
                continue
            values = [exact.double(), native.kept[part.name][name].double(), found[name].double()]
            if exact.shape[:2] == mask.shape:
                values = [value[mask] for value in values]
            wanted, old, new = (value.nan_to_num(0, 0, 0) for value in values)
            tally = sums.setdefault(STEP.sub("", name), [0.0, 0.0, 0.0])
            for index, square in enumerate((wanted, old - wanted, new - wanted)):
                tally[index] += float(square.square().sum())
    unit = UNIT_ROUNDOFF[str(merged.model.dtype)]
    noises = []
    for name, (size, old, new) in sums.items():
        floor = FLOOR[unit > UNIT_ROUNDOFF["torch.float32"]] * unit * size**0.5
        scale = size**0.5 or 1.0
        noises.append(OutputNoise(name, max(old**0.5, floor) / scale or unit, new**0.5 / scale))
    return noises, []
