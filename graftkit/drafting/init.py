"""Draft a recipe of one kind for one model: look at it, choose, plan what was chosen, and write that down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.drafting.kinds import USUAL
from graftkit.drafting.output import free_output
from graftkit.drafting.recipe_text import recipe_text
from graftkit.errors import InputRejected, RecipeError, few, plural
from graftkit.recipe import parse_recipe

if TYPE_CHECKING:
    from graftkit.drafting.draft import Draft
    from graftkit.drafting.facts import Facts
    from graftkit.planned import Plan


@dataclass(frozen=True, slots=True)
class Drafted:
    """A recipe that was drafted and planned, as a mapping and as commented YAML."""

    kind: str
    recipe: Mapping[str, Any]
    text: str


def draft_recipe(model: str, kind: str = USUAL, *, revision: str | None = None) -> Drafted:
    """Draft a recipe that applies to ``model`` as it stands; reads headers, config and tokenizer, no weights.

    Raises:
        InputRejected: the checkpoint cannot be opened or operated on.
        RecipeError: the model cannot have a recipe of this kind, or needs none, and why.
    """
    checkpoint = Checkpoint.open(model, revision=revision, weights=False)
    from graftkit.drafting.drafts import DRAFTS  # torch is loaded for a checkpoint that is there
    from graftkit.drafting.facts import Facts
    from graftkit.planning import plan_on

    facts = Facts.of(checkpoint)
    try:
        drafted = DRAFTS[kind](facts)
        recipe = _recipe(facts, drafted, model, kind, revision)
        planned = plan_on(checkpoint, parse_recipe(recipe))
    except InputRejected as error:
        raise RecipeError(f"init --for {kind}: {error}") from error
    except RecipeError as error:
        raise RecipeError([f"init --for {kind}: {_without_place(problem)}" for problem in error.problems]) from error
    comments = {"output": "it must not exist"}
    if facts.structure.unknown:
        comments["unknown_tensors"] = (
            f"no class of this config knows {few(facts.structure.unknown)}: taken over byte for byte"
        )
    head = [*_head(facts, drafted, kind, model), *_planned(planned)]
    return Drafted(kind, recipe, recipe_text(head, recipe, drafted.steps, comments))


def _recipe(facts: Facts, drafted: Draft, model: str, kind: str, revision: str | None) -> dict[str, Any]:
    name = model.rstrip("/").rpartition("/")[2] if facts.checkpoint.revision else facts.checkpoint.directory.name
    recipe: dict[str, Any] = {"version": 1, "base_model": model}
    if revision is not None:
        recipe["revision"] = revision
    if facts.structure.unknown:
        recipe["unknown_tensors"] = "carry"
    recipe["operations"] = [step.mapping() for step in drafted.steps]
    return {**recipe, "output": free_output(f"{name}-{kind}", facts.checkpoint.directory)}


def _without_place(problem: str) -> str:
    """What an operation says is wrong, without its place in a recipe that nobody has seen."""
    place, separator, rest = problem.partition(": ")
    if not separator or not place.startswith("operations."):
        return problem
    return rest.partition(": ")[2] if place.count(".") == 1 and ": " in rest else rest


def _head(facts: Facts, drafted: Draft, kind: str, model: str) -> Iterator[str]:
    sizes = facts.dimensions
    layers = ", ".join(f"{plural(count, 'layer')} ({name})" for name, count in sizes.layers.items())
    width = f"width {sizes.hidden_size}" if sizes.hidden_size else ""
    tokens = plural(facts.tokenizer.size, "token") if facts.tokenizer.size else ""
    known = ", ".join(part for part in (facts.architecture, layers, width, tokens) if part)
    yield f"{drafted.title[0].upper()}{drafted.title[1:]}, drafted by"
    yield f"   graftkit init {model} --for {kind}"
    yield f"The model: {known}. What the recipe would write is shown by"
    yield "   graftkit plan recipe.yaml"


def _planned(planned: Plan) -> Iterator[str]:
    """What the plan found, paragraph by paragraph."""
    if planned.new_tokens:
        ids = ", ".join(f"{token} ({index})" for token, index in list(planned.new_tokens.items())[:10])
        yield f"New tokens and their ids: {ids}."
    if planned.adapted:
        yield f"It trains {plural(sum(group.parameters for group in planned.adapted), 'parameter')}, in:"
        for group in planned.adapted:
            shape = f"  {' -> '.join(map(str, group.shape))}" if group.shape else ""
            yield f"   {group.name} ({group.number}){shape}"
        yield f"Never trained: {', '.join(_untouched(planned)) or 'nothing'}."
    yield f"Promised: {planned.promise.sentence()}."


def _untouched(planned: Plan) -> tuple[str, ...]:
    from graftkit.architecture.peft.adapted import untouched
    from graftkit.architecture.skeleton import build_skeleton

    assert planned.adapter is not None  # noqa: S101 - there are no adapted modules without one
    return untouched(planned.adapter, build_skeleton(planned.result.config))
