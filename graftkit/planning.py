"""Plan: what a recipe would write, computed from headers, config and tokenizer alone."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from graftkit.architecture.accounting import Structure, account, refuse_unknown
from graftkit.architecture.missing_rows import missing_rows_of
from graftkit.architecture.state_names import state_names
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.inputs import input_files
from graftkit.errors import InputRejected, RecipeError
from graftkit.operations import IMPLEMENTATIONS, NEED_PLAIN_WEIGHTS, Context, Outcome
from graftkit.operations.base import check_plain_weights
from graftkit.operations.combinations import check_combination
from graftkit.operations.weights.unconverted import reader_of
from graftkit.planned import Plan
from graftkit.recipe import Convert, Recipe, load_recipe, parse_recipe
from graftkit.running.runnable import cannot_unpack, refuse_looks
from graftkit.verification.composition import compose
from graftkit.verification.subject import Progress
from graftkit.verification.weights.dcp_form import IN_PLAIN_FORM

#: What a recipe may want to see of a model beside its outputs.
LOOKS = ("lens", "signal", "first_step")


def _as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    return load_recipe(recipe) if isinstance(recipe, str | Path) else parse_recipe(recipe)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Leave the cyclic collector out: what a plan makes stays, and it would walk over all of torch again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def plan(
    recipe: Recipe | Mapping[str, Any] | str | Path, *, allow_pickle: bool = False, progress: Progress | None = None
) -> Plan:
    """Plan a recipe: read headers, config and tokenizer, no weights.

    With ``allow_pickle`` a recipe that begins with ``convert`` may have a base whose weights are pickles. ``progress`` is told what
    takes long.

    Raises:
        RecipeError: the recipe is wrong, or asks for what this checkpoint has no place for.
        InputRejected: the checkpoint cannot be operated on.
    """
    recipe = _as_recipe(recipe)
    source = _open(recipe, allow_pickle=allow_pickle)
    inputs = input_files(recipe.plain_fields())
    return replace(plan_on(source, recipe, progress), inputs=inputs)


@_collector_paused()
def plan_on(source: Checkpoint, recipe: Recipe, progress: Progress | None = None) -> Plan:
    """Plan a recipe on an opened checkpoint, whatever the recipe calls its base; see :func:`plan`."""
    result = source
    outcomes: tuple[Outcome, ...] = ()
    for place, spec in enumerate(recipe.operations):
        context = Context(recipe.seed, place, source, recipe.output, outcomes, progress)
        if spec.op in NEED_PLAIN_WEIGHTS and not getattr(spec, "dequantize", False):
            itself = "add dequantize: true to it" if hasattr(spec, "dequantize") else "begin with {convert}"
            check_plain_weights(result, spec.op, else_do=itself)
        try:
            outcome = IMPLEMENTATIONS[spec.op](spec, result, context)
            outcome = check_combination(recipe.operations[: place + 1], source, outcomes, outcome)
        except RecipeError as error:
            raise error.in_operation(place, spec.op) from error
        result = outcome.checkpoint
        outcomes += (outcome,)
    cannot_run = cannot_unpack(source)
    refuse_looks(cannot_run, [name for name in LOOKS if getattr(recipe.verify, name)])
    structure = _check_result(result, recipe) if result is not source else None
    promise = compose([(outcome.promise, outcome.scope) for outcome in outcomes])
    if recipe.output_format == "dcp" and not source.in_memory:
        state_names(structure or account(result))
        promise = replace(promise, assumptions=(*promise.assumptions, IN_PLAIN_FORM))
    unknown = structure.unknown if structure else ()
    added = structure.names_not_loaded(result.tensors.keys() - source.tensors.keys()) if structure else frozenset()
    return Plan(
        recipe, source, result, outcomes, promise, missing_rows_of(result), unknown, added=added, cannot_run=cannot_run
    )


def _open(recipe: Recipe, *, allow_pickle: bool) -> Checkpoint:
    """Open the base; pickles are read where the recipe converts them and whoever runs it trusts them.

    Raises:
        RecipeError, InputRejected: see :func:`~graftkit.operations.weights.unconverted.reader_of`.
    """
    first = recipe.operations[0]
    try:
        read = (
            reader_of(Path(recipe.base_model), first, allow_pickle=allow_pickle) if isinstance(first, Convert) else None
        )
    except RecipeError as error:
        raise error.in_operation(0, first.op) from error
    if read is None:
        return Checkpoint.open(recipe.base_model, revision=recipe.revision, weights=False)
    return Checkpoint.open(recipe.base_model, revision=recipe.revision, read=read)


def _check_result(result: Checkpoint, recipe: Recipe) -> Structure:
    """A skeleton built from the new config must have exactly the shapes of the result; every document must be readable.

    Tensors that no class knows are in what is returned, where the recipe carries them.
    """
    dict(result.documents)
    try:
        structure = account(result)
    except InputRejected as error:
        raise InputRejected(f"the planned result would not load: {error}") from error
    if recipe.unknown_tensors == "refuse":
        refuse_unknown(result, structure)
    return structure
