"""A base with an adapter as peft loads it: what a merged checkpoint is compared with.

Two instruments. Each merged weight is replayed from peft's own merge in float64: it must be that, rounded once to its dtype. And
the outputs of both are compared with the adapted model's in float64: the merged model's error may be at most twice the noise of
the arithmetic itself, which is that of the adapted model or, where that is larger, of peft's merge in the same dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.peft.parts import lora_parts
from graftkit.architecture.skeleton import one_line
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import few, plural
from graftkit.running.forward import Loaded, load, release, run, undisturbed
from graftkit.running.peft_loading import load_adapted, merged_by_peft
from graftkit.running.place import Place
from graftkit.running.probes import in_result
from graftkit.running.reference import Reference, run_loaded
from graftkit.verification.adapters.merged_weights import WeightComparison, compare_weights
from graftkit.verification.checks import LoadsModels, Report, Row
from graftkit.verification.comparison import NOISE_RATIO, Comparison, Outputs, paired
from graftkit.verification.distribution import UNIT_ROUNDOFF
from graftkit.verification.promises import Scope
from graftkit.verification.subject import Subject

if TYPE_CHECKING:
    from torch import nn

    from graftkit.running.probes import Probe

#: Experts with adapters on them are held in float64 while the reference is made, up to this size.
FUSED_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class OutputNoise:
    """One output: relative root-mean-square errors against the adapted model in float64.

    ``adapted`` is that of the adapted model in its own dtype, ``merged`` that of the merged one; ``by_peft`` that of peft's own
    merge in the same dtype, taken only where the other two are more than NOISE_RATIO apart.
    """

    name: str
    adapted: float
    merged: float
    by_peft: float | None = None
    derived: ClassVar[tuple[str, ...]] = ("ratio",)

    @property
    def ratio(self) -> float:
        """The noise ratio; 1 says that merging adds nothing to the noise of the arithmetic, or to that of any merge."""
        return self.merged / self.floor

    @property
    def floor(self) -> float:
        """The noise that was measured without this merge."""
        return max(self.adapted, self.by_peft or 0.0)


@dataclass(frozen=True, slots=True)
class AdaptedReport(Report):
    """What was compared with the base and the adapter as peft loads them. ``skipped`` says what was not, and why.

    ``dtype`` is that of the merged weights.
    """

    weights: tuple[WeightComparison, ...]
    outputs: tuple[OutputNoise, ...]
    tokens: int
    dtype: str
    skipped: tuple[str, ...]
    failures: tuple[str, ...]
    name: str = "merged against adapted"
    derived: ClassVar[tuple[str, ...]] = ("kept",)

    @property
    def kept(self) -> float | None:
        """The share of the adapter's whole update that the dtype of the weights keeps; None where it adds to none."""
        energy = sum(weight.energy for weight in self.weights)
        return sum(weight.kept * weight.energy for weight in self.weights) / energy if energy else None

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        verdict = "failed" if self.failures else "rounded"
        if self.weights:
            exact = min(weight.equal for weight in self.weights)
            figure = (
                f"{len(self.weights)} replayed in float64, at least {exact:.2%} of each equal to the bit once rounded"
            )
            yield Row("merged weights", verdict, figure)
        if self.kept is not None:
            yield Row(f"update kept by {self.dtype}", f"{self.kept:.0%}", _advice(self.kept, self.dtype))
        if self.outputs:
            worst = max(self.outputs, key=lambda output: output.ratio)
            figure = f"{plural(self.tokens, 'token')}, noise ratio at most {worst.ratio:.3g} ({worst.merged:.2g} / {worst.floor:.2g})"
            yield Row("outputs beside peft", verdict, figure)
        for reason in self.skipped:
            yield Row("not compared", "skipped", reason)


@dataclass(frozen=True, slots=True)
class MergeCheck(LoadsModels):
    """The merged checkpoint beside the base and the adapter of ``folder``; ``base`` is what that lay on, None for the source.

    ``by_others`` says that another program merged them.
    """

    folder: Path
    base: Checkpoint | None = None
    by_others: bool = False
    name: str = "merged against adapted"

    def run(self, subject: Subject) -> AdaptedReport:
        """Compare the two; see :func:`compare_with_adapted`."""
        return compare_with_adapted(
            subject.source, subject.result, self.folder, base=self.base, later=subject.later,
            backbone=Scope.BACKBONE in subject.later_scope, seed=subject.seed, by_others=self.by_others,
        )  # fmt: skip


def _advice(kept: float, dtype: str) -> str:
    if round(kept, 2) == 1 or dtype in ("float32", "float64"):
        return "rounding takes nothing away that counts"
    return f"values that move by less than half a unit of {dtype} stay; more training, or dtype: float32, keeps more"


def compare_with_adapted(
    source: Place, result: Place, folder: Path, *, base: Checkpoint | None = None, later: Correspondence = IDENTITY,
    backbone: bool = False, seed: int = 0, by_others: bool = False,
) -> AdaptedReport:  # fmt: skip
    """Compare the merged checkpoint ``result`` with ``source`` and the adapter of ``folder``, unmerged.

    ``base`` is what the adapter lies on where that is not the source. ``later`` says how the vocabulary changed after merging, and
    ``backbone`` that another head came then, so that hidden states and the weights that both have are compared. ``by_others`` says
    that another program merged them, which may round the update before it is added.

    Raises:
        InputRejected, VerificationFailed: a checkpoint or the adapter does not load, or the forward needs inputs that
            cannot be made.
    """
    skipped: list[str] = []
    with undisturbed():
        adapted = load_adapted(source, folder, base)
        merged = load(result)
        weights = tuple(
            compare_weights(adapted.model, merged.model, skipped, later, backbone=backbone, by_others=by_others)
        )
        dtype = merged.dtype
        release(merged.model)
        native = run_loaded(adapted, source, later.drawn_ids, seed, None, {}, lambda _: None)
        reference = _in_float64(adapted.model, native, skipped)
        release(adapted.model)
        outputs, broken = _outputs(
            load(result), native, reference, lambda: merged_by_peft(source, folder, base), later, backbone
        )
    failures = [weight.failure for weight in weights if weight.failure] + broken
    failures += [
        f"outputs: {item.name} of the merged model is {item.merged:.3g} off the adapted model in float64, the noise without it"
        f" {item.floor:.3g}: a noise ratio of {item.ratio:.3g}, above {NOISE_RATIO:g}"
        for item in outputs
        if item.ratio > NOISE_RATIO
    ]
    tokens = sum(part.tokens for part in native.parts)
    return AdaptedReport(weights, tuple(outputs), tokens, dtype, tuple(skipped), tuple(failures))


def _in_float64(model: nn.Module, native: Reference, skipped: list[str]) -> dict[str, Outputs]:
    """The outputs of every probe in true float64; empty where the class cannot be run so."""
    from graftkit.running.float64 import float64

    # peft registers what it adds to a parameter of experts as a parametrization, which must keep the parameter's dtype.
    fused = [part.module for part in lora_parts(model) if part.on_parameter]
    size = sum(parameter.numel() for module in fused for parameter in module.parameters())
    if 8 * size > FUSED_BYTES:
        skipped.append(f"outputs in float64: adapted experts of {size:,} elements are too many to be held in float64")
        return {}
    try:
        for module in fused:
            module.double()
        with float64(model):
            return {part.name: run(model, part, native.extra_inputs) for part in native.parts}
    except Exception as error:  # noqa: BLE001 - a class with kernels that know no float64
        skipped.append(f"outputs in float64: {one_line(error)}")
        return {}


def _outputs(
    result: Loaded, native: Reference, reference: Mapping[str, Outputs], by_peft: Callable[[], nn.Module],
    later: Correspondence, backbone: bool,
) -> tuple[list[OutputNoise], list[str]]:  # fmt: skip
    """Errors of the adapted and of the merged model over all probes; ``by_peft`` makes peft's own merge, where it is needed."""
    failures: list[str] = []
    merged = Comparison(later, join_steps=True)
    for part in native.parts:
        outputs = _run_merged(result.model, native, later, failures, part, backbone=backbone)
        _add(merged, part, native, reference, outputs)
    if failures:
        return [], failures
    unit = UNIT_ROUNDOFF[str(result.model.dtype)]
    adapted = Comparison(later.within_source(), join_steps=True)
    for part in native.parts:
        _add(adapted, part, native, reference, native.kept[part.name])
    errors = {name: one.error for name, one in merged.outputs.items() if one.places}
    noises = [OutputNoise(name, max(adapted.outputs[name].error, unit), error) for name, error in errors.items()]
    if not any(noise.ratio > NOISE_RATIO for noise in noises):
        return noises, []
    peer, model = Comparison(later.within_source(), join_steps=True), by_peft()
    for part in native.parts:
        _add(peer, part, native, reference, run(model, part, native.extra_inputs))
    return [dataclasses.replace(noise, by_peft=peer.outputs[noise.name].error) for noise in noises], []


def _add(found: Comparison, part: Probe, native: Reference, reference: Mapping[str, Outputs], outputs: Outputs) -> None:
    """Compare what was kept of the adapted model's outputs, in float64, with ``outputs``."""
    exact = reference.get(part.name, {})
    found.add(part, {name: exact[name] for name in native.kept[part.name] if name in exact}, outputs)


def _run_merged(
    model: nn.Module, native: Reference, later: Correspondence, failures: list[str], part: Probe, *, backbone: bool
) -> Outputs:
    """The outputs of one probe; what is wrong with them over the ids from before ``later`` goes to ``failures``."""
    try:
        found = run(model, in_result(part, later), native.extra_inputs)
    except Exception as error:  # noqa: BLE001 - whatever the forward raises is the finding
        failures.append(f"outputs: the merged model's forward fails on probe {part.name!r}: {one_line(error)}")
        return {}
    pairs, other = paired(native.names[part.name], found, later)
    if backbone:
        found = {given: found[given] for name, given in pairs.items() if "hidden" in name}
    elif other:
        failures.append(f"outputs: only one of adapted and merged model gives these outputs: {few(other)}")
    beside = Comparison(later)
    beside.add(part, native.kept[part.name], found)
    broken = [name for name, one in beside.outputs.items() if one.nan]
    if broken:
        failures.append(f"outputs: {few(broken)} of the merged model holds NaN on probe {part.name!r}")
    return found
