"""The check of an adapter: loaded on its base with peft as a trainer does it, run beside the base, and differentiated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.peft.adapter_edits import check_fit
from graftkit.architecture.skeleton import build_skeleton, one_line
from graftkit.checkpoint.adapter import AdapterPlace, adapter_at, tensors_at
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, plural
from graftkit.running import memory
from graftkit.running.forward import Loaded, load, undisturbed
from graftkit.running.peft_loading import assembled, with_peft
from graftkit.running.place import Place, open_place
from graftkit.running.probes import Probe, in_result
from graftkit.running.reference import Reference, load_source, run_loaded
from graftkit.running.runnable import cannot_run, weight_bytes
from graftkit.verification.adapters.liveness import Liveness, liveness
from graftkit.verification.adapters.outputs import OutputGap, compare, merged, move_by_one_rounding
from graftkit.verification.adapters.tuner_gradients import TunerGradients, as_it_runs, tuner_gradients
from graftkit.verification.adapters.weights import WeightGap, offset_gap, residual_gap
from graftkit.verification.checks import Report, Row
from graftkit.verification.digests import BaseDigests, checkpoint_digests
from graftkit.verification.promises import PromiseClass

if TYPE_CHECKING:
    from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class Residual:
    """The base has lost what its adapter starts with: the two together are compared with the source.

    ``correspondence`` says how operations before have changed which ids are which, ``backbone`` that the head is another one. Where
    one has changed on purpose what the model does, the source is no reference, and ``from_source`` is off.
    """

    correspondence: Correspondence = IDENTITY
    backbone: bool = False
    from_source: bool = True


@dataclass(frozen=True, slots=True)
class AdapterReport(Report):
    """What was found of an adapter. ``strength`` is the class that was promised, empty where nothing was.

    ``not_compared`` says why the model was not run, empty where it was; ``base`` holds digests of what it was loaded on.
    ``found`` gives the sentences of each kind of look that found something wrong: peft, outputs, weights, gradients, merging.
    """

    strength: str
    tensors: int
    nbytes: int
    base: BaseDigests
    not_compared: str
    residual: Residual | None = None
    gap: OutputGap | None = None
    merged: str = ""
    weights: WeightGap | None = None
    gradients: Liveness | TunerGradients | None = None
    found: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    derived: ClassVar[tuple[str, ...]] = ("failures",)

    @property
    def name(self) -> str:
        """Its key in the report."""
        return "adapter"

    @property
    def trained(self) -> bool:
        """Whether it moves the outputs and nothing was promised of them, as with an adapter that somebody has trained."""
        return not self.strength and self.gap is not None and not self.gap.bitwise

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each thing found wrong."""
        return tuple(sentence for sentences in self.found.values() for sentence in sentences)

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        yield Row("adapter", "read back", f"{plural(self.tensors, 'tensor')}, {plural(self.nbytes, 'byte')}")
        if self.not_compared:
            yield Row("adapter with peft", "failed" if self.failures else "not run", self.not_compared)
            return
        yield Row(
            "loaded with peft", "complete" if not self.failures else "failed", "nothing missing, nothing unexpected"
        )
        if self.gap is not None:
            result = "bitwise" if self.gap.bitwise else "trained" if self.trained else "measured"
            figure = (
                f"max |Δ| {self.gap.largest:.3g}, relative {self.gap.relative:.3g}, {plural(self.gap.values, 'value')}"
            )
            if self.gap.noise is not None:
                figure += f"; one more rounding of the adapted weights {self.gap.noise:.3g}"
            yield Row("base with adapter", result, figure)
        if self.weights is not None:
            yield Row("weights put together", self.weights.word, self.weights.figure)
        if self.merged:
            yield Row("after merging", self.merged, "")
        if self.gradients is not None:
            yield from self.gradients.rows()


@dataclass(frozen=True, slots=True)
class AdapterCheck:
    """Check the written adapter on the written base, beside the base alone, or beside the source where it is ``residual``.

    ``before`` is the base as it was before the adapter took its part, for where the source is no reference. Without a
    ``strength`` nothing was promised: how far the adapter moves the outputs is measured, and fails only where it gives NaN.
    """

    strength: PromiseClass | None
    residual: Residual | None = None
    before: Checkpoint | None = None

    name: ClassVar[str] = "adapter"

    def applies(self, subject: Subject) -> bool:
        """Where there is an adapter: digests are taken also where no model may be run."""
        return subject.adapter is not None

    def run(self, subject: Subject) -> AdapterReport:
        """Run the check on what was made; see :meth:`look`."""
        if subject.adapter is None:
            raise ValueError("there is no adapter")
        source = None if self.residual is None else subject.source
        return self.look(
            subject.result, subject.adapter, source, seed=subject.seed, reason=subject.not_run, digests=subject.digests
        )

    def look(
        self, base: Place, adapter: AdapterPlace, source: Place | None, *, seed: int = 0, reason: str = "",
        digests: Callable[[bool], BaseDigests] | None = None,
    ) -> AdapterReport:  # fmt: skip
        """Check ``adapter`` on ``base``; with a ``reason`` not to run the model, digests and the fit of shapes alone.

        ``digests`` returns those of the base, with or without its weights, where the caller has made them.

        Raises:
            InputRejected: base or adapter cannot be opened.
        """
        reason = reason or cannot_run(base)
        tensors = tensors_at(adapter)
        report = AdapterReport(
            self.strength.word if self.strength is not None else "",
            len(tensors),
            sum(tensor.nbytes for tensor in tensors.values()),
            digests(not reason) if digests else checkpoint_digests(open_place(base), weights=not reason),
            reason,
            self.residual,
        )
        if reason:
            return dataclasses.replace(report, found={"peft": _misfit(base, adapter)})
        seconds: dict[str, float] = {}
        with undisturbed():
            return self._loaded(report, base, adapter, source, seed, seconds)

    def _loaded(
        self,
        report: AdapterReport,
        base: Place,
        adapter: AdapterPlace,
        source: Place | None,
        seed: int,
        seconds: dict[str, float],
    ) -> AdapterReport:
        residual = Residual() if self.residual is None else self.residual
        reference = None
        if source is not None:
            reference = run_loaded(
                self._original(source, residual), source, residual.correspondence.drawn_ids, seed, None, seconds, lambda _: None,
                backbone=residual.backbone,
            )  # fmt: skip
        model = load(base)
        if reference is None:
            reference = run_loaded(model, base, None, seed, None, seconds, lambda _: None)
        try:
            peft_model, named = with_peft(model.model, adapter)
        except Exception as error:  # noqa: BLE001 - whatever peft runs into is the finding
            return dataclasses.replace(report, found={"peft": (f"adapter: peft cannot load it: {one_line(error)}",)})
        if peft_model.active_peft_config.peft_type != "LORA":
            return dataclasses.replace(self._tuner(report, peft_model, named, reference, base, seed), seconds=seconds)
        inner = peft_model.get_base_model()
        inner = inner.base_model if residual.backbone else inner
        gap = compare(inner, reference, residual.correspondence)
        gap = self._with_noise(gap, peft_model, inner, lambda: self._start(base, source, residual), reference, seed)
        if source is not None:
            original = self._original(source, residual).model
            weights: WeightGap | None = residual_gap(inner, original, residual.correspondence)
        else:
            weights = offset_gap(inner) if self.strength is PromiseClass.EXACT else None
        first = in_result(reference.parts[0], residual.correspondence)
        alive = liveness(peft_model, first, reference.extra_inputs, seed)
        found = {
            "peft": named,
            "weights": weights.failures if weights else (),
            "outputs": tuple(gap.failures(self.strength)),
            "gradients": alive.failures if self._says_of_gradients(gap) else (),
        }
        after = "" if any(found.values()) else self._merged(peft_model, first, reference.extra_inputs, base)
        found["merging"] = ("adapter: merging it changes the outputs",) if after == "failed" else ()
        return dataclasses.replace(
            report, gap=gap, merged=after, weights=weights, gradients=alive, found=found, seconds=seconds
        )

    def _says_of_gradients(self, gap: OutputGap) -> bool:
        """Whether gradients at step 0 are judged: those of an adapter that somebody has trained lie behind it."""
        return self.strength is not None or gap.bitwise

    def _start(self, base: Place, source: Place | None, residual: Residual) -> Any:
        """The model that the adapted one is compared with, loaded anew."""
        return load(base).model if source is None else self._original(source, residual).model

    def _with_noise(
        self, gap: OutputGap, peft_model: Any, adapted: Any, start: Callable[[], Any], reference: Reference, seed: int
    ) -> OutputGap:
        """The gap of ``adapted`` beside what one more rounding of its adapted weights does, where only rounding is allowed."""
        if gap.bitwise or gap.broken or self.strength not in (PromiseClass.EXACT, PromiseClass.ROUNDED):
            return gap
        model = start()
        known = dict(model.named_parameters())
        correspondence = (self.residual or Residual()).correspondence
        old = (correspondence.module_in_source(name) for name in adapted_weights(adapted))
        names = [name for name in old if name is not None and name in known]
        move_by_one_rounding(model, names, getattr(peft_model.active_peft_config, "r", None) or 1, seed)
        return dataclasses.replace(gap, noise=compare(model, reference).relative)

    def _original(self, source: Place, residual: Residual) -> Loaded:
        if self.before is not None:
            return assembled(self.before)
        return load_source(source, backbone=residual.backbone)

    def _tuner(
        self,
        report: AdapterReport,
        peft_model: Any,
        named: tuple[str, ...],
        reference: Reference,
        base: Place,
        seed: int,
    ) -> AdapterReport:
        """The same for a kind of adapter that is no LoRA; no promise speaks of merging it."""
        model, reference, prompt = as_it_runs(peft_model, reference)
        gap = compare(model, reference, prompt=prompt)
        gap = self._with_noise(gap, peft_model, peft_model.get_base_model(), lambda: load(base).model, reference, seed)
        alive = tuner_gradients(peft_model, model, reference.parts[0], reference.extra_inputs, seed)
        gradients = alive.failures if self._says_of_gradients(gap) else ()
        found = {"peft": named, "outputs": tuple(gap.failures(self.strength)), "gradients": gradients}
        return dataclasses.replace(report, gap=gap, gradients=alive, found=found)

    def _merged(self, peft_model: Any, probe: Probe, extra_inputs: frozenset[str], base: Place) -> str:
        """Merge and run the first probe again, where merging is promised to change nothing and memory is at hand."""
        if self.strength is not PromiseClass.BITWISE:
            return ""
        if weight_bytes(base) > memory.available() // 2:
            return "not run: too little memory"
        return merged(peft_model, probe, extra_inputs)


def adapted_weights(model: Any) -> Iterator[str]:
    """Yield the names that the weights of every module of ``model`` have without the adapter that peft has put on it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield from (f"{name}.{leaf}" for leaf, _ in module.get_base_layer().named_parameters(recurse=False))


def _misfit(base: Place, adapter: AdapterPlace) -> tuple[str, ...]:
    """A sentence where peft cannot put the adapter on the base, as far as config and shapes tell."""
    skeleton = build_skeleton(open_place(base).config)
    try:
        check_fit(skeleton, adapter_at(adapter), "adapter")
    except InputRejected as refused:
        return (str(refused),)
    return ()
