"""widen: more units in feed-forward layers, more key-value heads or experts' units, with the function as it was."""

from __future__ import annotations

from collections.abc import Mapping

from graftkit.architecture.accounting import account
from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import RecipeError, few
from graftkit.operations.base import Context, Outcome
from graftkit.operations.given_texts import texts_checks
from graftkit.operations.widths.new_experts import new_experts
from graftkit.operations.widths.tensors import grown_tensors, parts
from graftkit.operations.widths.widening import Widening, find_widening
from graftkit.recipe import Widen
from graftkit.recipe.weight_schemes import Matched
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope
from graftkit.verification.weights.rescaled import RescaledCheck, Scaled


def widen(spec: Widen, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Make the sizes that ``spec`` names larger, one after the other.

    Sums over an axis that has grown may be taken in another order, so what is promised is equality over the real numbers, and it
    is looked for in float64. With ``allow_change`` what has no such rule is done too, and the change is measured.

    Raises:
        RecipeError: a field is not there, does not grow, is no width, or there is nothing that ``init`` would make.
        InputRejected: nothing that was tried keeps the function, or a tensor is stored in a way that is not understood.
    """
    result, correspondence, steps, scaled = checkpoint, IDENTITY, list[Widening](), dict[str, Scaled]()
    for name, wanted in spec.sizes.items():
        structure = account(result)
        step = find_widening(result.config, structure.skeleton, name, wanted, allow_change=spec.allow_change)
        seed = (context.seed, context.place, step.field.shown)
        tensors = grown_tensors(result, structure, step, spec.init or Matched(), seed)
        scaled |= {
            part.disk: Scaled(result.tensors[part.disk], tensors[part.disk], part.maps)
            for part in parts(result, structure, step)
            if part.maps.scale != 1.0
        }
        result = result.with_tensors(tensors).with_documents({"config.json": step.config})
        for shard, made in new_experts(result, structure, step, spec.init or Matched(), seed).items():
            result = result.with_tensors(made, shard=shard)
        correspondence = correspondence.then(Correspondence(widths=step.maps))
        steps.append(step)
    if spec.init is not None and all(step.found.repeated for step in steps):
        raise RecipeError("makes nothing: all that is new are copies; leave it out", field="init")
    changed = [step.field.shown for step in steps if step.found.change]
    if spec.allow_change and not changed:
        raise RecipeError(
            "nothing changes: every size grows with the function as it was; leave it out", field="allow_change"
        )
    rounds = any(step.rounds for step in steps)
    promise = Promise(
        PromiseClass.ROUNDED if rounds else PromiseClass.EXACT,
        "hidden states and logits, but for the rounding of what is multiplied"
        if rounds
        else "hidden states and logits",
        EVERY_INPUT,
    )
    return Outcome(
        result,
        Promise(PromiseClass.INTENTIONAL, f"{few(changed)} grown with a change of the function", EVERY_INPUT)
        if changed
        else promise,
        tuple(note for step in steps for note in step.notes()),
        correspondence=correspondence,
        scope=Scope.MEASURE if changed else Scope.REORDERED,
        checks=(*texts_checks(spec.texts), *([_rescaled(scaled, context, changed=bool(changed))] if scaled else [])),
        figures=lambda: {"widths": [_figures(step) for step in steps]},
    )


def _rescaled(scaled: Mapping[str, Scaled], context: Context, *, changed: bool) -> RescaledCheck:
    """The check of what was multiplied; outputs are judged where nothing else in the recipe so far changes them."""
    return RescaledCheck(scaled, alone=not changed and all(one.scope.same_outputs for one in context.earlier))


def _figures(step: Widening) -> dict[str, object]:
    return {
        "field": step.field.shown,
        "before": step.value,
        "after": step.wanted,
        "zero": list(step.found.zero),
        "repeated": step.found.repeated,
        "change": step.found.change,
        "scaled": {name: {"scale": maps.scale, "offset": maps.offset} for name, maps in step.scaled.items()},
        "layouts": {name: {str(a): str(one) for a, one in axes.items()} for name, axes in step.found.layouts.items()},
    }
