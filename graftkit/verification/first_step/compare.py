"""Source and result, one optimiser step into training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from graftkit.architecture.correspondence import Correspondence
from graftkit.errors import few, printable
from graftkit.running.forward import load, release, undisturbed
from graftkit.running.place import Place
from graftkit.running.probes import in_result
from graftkit.running.reference import timed
from graftkit.running.split.interrupts import CannotSplit
from graftkit.running.split.together import together
from graftkit.verification.first_step.adapter import adapter_first_step
from graftkit.verification.first_step.noise import GradientGap, OldGradients, null_gradients
from graftkit.verification.first_step.reach import New
from graftkit.verification.first_step.report import FirstStepReport
from graftkit.verification.first_step.shared import shared_names, united
from graftkit.verification.first_step.task import differentiable
from graftkit.verification.first_step.training import Training, first_texts
from graftkit.verification.lens.unrounded import scaled_maps
from graftkit.verification.promises import Scope

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.running.split.crew import Crew
    from graftkit.verification.subject import Progress, Subject

#: Why there are no old gradients and no forecast, where the source is not what the outputs are compared with.
OTHER_OUTPUTS = "the result is meant to have other outputs"
OTHER_SOURCE = "the source alone is not what the result is compared with"


def compare_first_step(subject: Subject) -> FirstStepReport:
    """Take the first step of training with copies of both models in float32, on the CPU, one model at a time.

    The old gradients are those of the loss over old inputs and, of a language model, the old ids alone, where everything is
    promised. With an adapter the base is frozen, and the step is that of the adapter. Where there is a crew it runs and trains both,
    each of its ranks a run of blocks, whose parameters and gradients stay there; where it cannot, this process does so alone.

    Raises:
        VerificationFailed: the result does not load, or its forward cannot be differentiated.
    """
    return together(subject.crew, "first_step", lambda crew: _compare(replace(subject, crew=crew)))


def _compare(subject: Subject) -> FirstStepReport:
    seconds: dict[str, float] = {}
    crew, correspondence, scope, progress = subject.crew, subject.correspondence, subject.scope, subject.progress
    if subject.adapter is not None and crew is not None:
        raise CannotSplit("an adapter is trained")
    if subject.adapter is not None:
        return adapter_first_step(
            subject.result, subject.adapter, correspondence, subject.seed, scope, lambda share: _tell(progress, share)
        )
    with undisturbed(), differentiable():
        with timed(seconds, "source"):
            old = load(subject.source).model.float() if crew is None else crew.load(subject.source, trained=True).model
            shapes = {_bare(old, name): tuple(value.shape) for name, value in old.named_parameters()}
            ties = shared_names(old)
            drawn = correspondence.drawn_ids
            texts = first_texts(old, subject.source, drawn, subject.seed)
            before = _old_gradients(Training.of(old, texts, drawn), correspondence) if scope.same_outputs else None
            unscaled = _unscaled(old, correspondence)
        release(old)
        _tell(progress, 0.3)
        with timed(seconds, "result"):
            model = (
                load(subject.result).model.float() if crew is None else _load_near(subject.result, correspondence, crew)
            )
            _scale(model, unscaled, correspondence)
            new = Training.of_result(model, in_result(texts, correspondence), correspondence)
            groups = united(ties, shared_names(new.model), correspondence)
            gap = before.compare(new.old_gradients(), correspondence, groups) if before else None
        with timed(seconds, "reach"):
            moves = new.moves(_new_parameters(new.model, shapes, correspondence, new.fresh))
        _tell(progress, 0.6)
        with timed(seconds, "forecast"):
            steps = new.forecast() if scope.same_outputs else ()
        _tell(progress, 1.0)
    why = why_not(scope)
    broken = f"the source's own gradient of {few(before.broken())} is not finite" if before and before.broken() else ""
    gap = None if broken else gap
    return new.report(gap, broken or why, moves, steps, why, seconds, tuple(_failures(gap, moves, correspondence)))


def _load_near(result: Place, correspondence: Correspondence, crew: Crew) -> PreTrainedModel:
    """Corresponding blocks lie with one rank, so that their gradients are compared there."""
    return crew.load(result, beside=correspondence.module_in_result, stays=False, trained=True).model


def why_not(scope: Scope) -> str:
    """Why nothing old is compared under ``scope``; empty where it is."""
    return "" if scope.same_outputs else OTHER_SOURCE if Scope.NOTHING in scope else OTHER_OUTPUTS


def _old_gradients(old: Training, correspondence: Correspondence) -> OldGradients:
    """The source's gradients, each with its noise."""
    nulls = null_gradients(old.model, old.texts, old.extra_inputs, old.ids, correspondence)
    return OldGradients(old.old_gradients(), nulls)


def _unscaled(model: PreTrainedModel, correspondence: Correspondence) -> dict[str, Tensor]:
    """Copies of the source's parameters whose values the result has multiplied."""
    scaled = {name for name, maps in correspondence.widths.items() if maps.scale != 1.0}
    return {name: value.detach().clone() for name, value in model.named_parameters() if name in scaled}


def _scale(model: PreTrainedModel, unscaled: Mapping[str, Tensor], correspondence: Correspondence) -> None:
    """Give the result what it was given before that was rounded to its dtype, so that gradients are of the same function."""
    for name, value in model.named_parameters():
        found = scaled_maps(correspondence, name)
        if found is not None and found[0] in unscaled:
            value.data.copy_(found[1].placed(unscaled[found[0]], value.data))


def _new_parameters(
    model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], correspondence: Correspondence, fresh: Sequence[int]
) -> dict[str, New]:
    """The parameters that are new as a whole or in part, and the tables with their new rows; an embedding never trains its pad row."""
    pads = {f"{name}.weight": getattr(module, "padding_idx", None) for name, module in model.named_modules()}
    ids, found = correspondence.ids, dict[str, New]()
    sizes = None if ids is None else ((ids.result,), (ids.source,))
    for name, value in model.named_parameters():
        origin = correspondence.module_in_source(name)
        shape = None if origin is None else shapes.get(_bare(model, origin))
        maps = None if origin is None else correspondence.widened(origin)
        if shape is None:
            found[name] = None
        elif maps is not None and maps.has_new and maps.fits(shape, value.shape):
            found[name] = maps
        elif fresh and (value.shape[:1], shape[:1]) == sizes:
            found[name] = [row for row in fresh if row != pads.get(name)]
    return found


def _bare(model: PreTrainedModel, name: str) -> str:
    """The name of a parameter without that of the base model, which only some of the classes put before it."""
    return name.removeprefix(f"{model.base_model_prefix}.")


def _failures(
    gap: GradientGap | None, moves: Mapping[str, int | None], correspondence: Correspondence
) -> Iterator[str]:
    if gap is not None and gap.differs:
        yield (
            f"first step: the gradient of the old parameter {printable(correspondence.shown(gap.parameter))} differs by"
            f" {gap.error:.2g} of the largest norm in its module; the source's own noise there is {gap.floor:.2g}"
        )
    dead = [name for name, step in moves.items() if step is None]
    if dead:
        more = f" (and {len(dead) - 1} more)" if len(dead) > 1 else ""
        yield f"first step: {dead[0]}{more} has no gradient from the task's loss within three steps: it would never be trained"


def _tell(progress: Progress | None, share: float) -> None:
    if progress is not None:
        progress("take the first step", share)
