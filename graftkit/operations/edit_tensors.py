"""edit_tensors: steps on tensors by name, one after the other, for what has no operation of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import RecipeError
from graftkit.operations.base import Context, Outcome
from graftkit.operations.tensor_edits.effect import effect, with_dtype
from graftkit.operations.tensor_edits.stepped import Place, Stepped
from graftkit.operations.tensor_edits.steps import STEPS
from graftkit.recipe import EditTensors
from graftkit.recipe.edit_tensors import Step
from graftkit.verification.weights.edited import EditCheck


def edit_tensors(spec: EditTensors, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Take the steps in their order.

    Raises:
        RecipeError: a step fits no tensor or not the ones that it fits, or an assertion does not hold.
        InputRejected: another checkpoint that a step names cannot be opened.
    """
    result = checkpoint
    notes: list[str] = []
    checks: dict[int, Callable[[], None]] = {}
    sampled: dict[tuple[int, str], LazyTensor] = {}
    for number, step in enumerate(spec.steps):
        done = _take(step, number, result, Place((context.seed, context.place, number), context.source))
        result = done.checkpoint
        notes += done.notes
        sampled |= {(number, name): tensor for name, tensor in done.sampled.items()}
        if done.check is not None:
            checks[number] = done.check
    result, changed = with_dtype(checkpoint, result)
    found = effect(checkpoint, result)
    return Outcome(
        result,
        found.promise,
        (*notes, *changed, *found.notes),
        scope=found.scope,
        checks=(EditCheck(checkpoint, result, context.source, spec.steps, sampled),),
        prepare=lambda progress: _check_values(checks, spec, progress),
    )


def _take(step: Step, number: int, checkpoint: Checkpoint, place: Place) -> Stepped:
    try:
        return STEPS[step.kind](step.body, checkpoint, place)
    except RecipeError as error:
        raise _placed(error, number, step) from error


def _placed(error: RecipeError, number: int, step: Step) -> RecipeError:
    """The same error with its field below the operation."""
    where = f"steps.{number}.{step.kind}"
    return RecipeError(error.problems, field=[f"{where}.{field}" if field else where for field in error.fields])


def _check_values(
    checks: Mapping[int, Callable[[], None]], spec: EditTensors, progress: Callable[[float], None]
) -> None:
    """Evaluate what is asserted of values, each behind the steps that stand before it.

    Raises:
        RecipeError: one of them does not hold.
    """
    for done, (number, check) in enumerate(checks.items(), 1):
        try:
            check()
        except RecipeError as error:
            raise _placed(error, number, spec.steps[number]) from error
        progress(done / len(checks))
