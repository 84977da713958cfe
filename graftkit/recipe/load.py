"""From a file, or from values of a library user, to a recipe."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from graftkit.errors import InputRejected, NotThere, RecipeError, leads_nowhere
from graftkit.recipe.messages import note_errors
from graftkit.recipe.recipe import Recipe
from graftkit.recipe_file.problems import Document
from graftkit.recipe_file.reading import read_document
from graftkit.recipe_file.wording import encodable
from graftkit.recipe_file.yaml_source import MAX_DEPTH

#: What stands for the output where a model in memory is grafted, and nothing is written.
IN_MEMORY = "in memory"


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at ``path``, or for ``-`` on standard input.

    ``overrides`` are such as ``operations.0.init=mean`` (a number counts in a list).

    Raises:
        RecipeError: all problems at once, in line order, those of overrides last; each names file and line.
    """
    return validated(read_document(path, overrides))


def recipe_for_model(recipe: Mapping[str, object] | Recipe | str | Path, name: str) -> tuple[Recipe, Document]:
    """A recipe for a model in memory that is called ``name``, with the document that knows where its values stand.

    Its ``base_model``, ``revision`` and ``output`` count for nothing, and may be left out.

    Raises:
        RecipeError: all problems at once, as :func:`load_recipe` and :func:`parse_recipe` say them.
    """
    own = {"base_model": name, "revision": None, "output": IN_MEMORY}
    if isinstance(recipe, Recipe):
        return recipe.model_copy(update=own), Document(None)
    document = (
        read_document(recipe) if isinstance(recipe, str | Path) else Document(_plain_containers(recipe, MAX_DEPTH))
    )
    if isinstance(document.data, dict):
        others = {key: value for key, value in document.data.items() if key not in own}
        document.data = {**others, "base_model": IN_MEMORY, "output": IN_MEMORY}
    return validated(document).model_copy(update=own), document


@contextlib.contextmanager
def places_added(document: Document) -> Iterator[None]:
    """Name file and line in problems that show only when a recipe meets its checkpoint, and where a path was looked for."""
    try:
        yield
    except RecipeError as error:
        problems = [document.looked(problem) for problem in error.problems] if leads_nowhere(error) else error.problems
        raise RecipeError([_located(problem, document) for problem in problems]) from error
    except InputRejected as error:
        if not leads_nowhere(error):
            raise
        raise NotThere(document.looked(str(error))) from error


def _located(problem: str, document: Document) -> str:
    return document.located(problem) if problem.startswith("operations.") else problem


def parse_recipe(data: Mapping[str, object] | Recipe) -> Recipe:
    """Return the recipe that ``data`` describes: a mapping as a YAML file holds it, where specs may stand for mappings.

    Raises:
        RecipeError: all problems at once, in the order of the fields.
    """
    if isinstance(data, Recipe):
        return data
    return validated(Document(_plain_containers(data, MAX_DEPTH)))


def validated(document: Document) -> Recipe:
    """The recipe that a document describes.

    Raises:
        RecipeError: all problems at once, in line order, those of overrides last; each names file and line.
    """
    recipe = None
    try:
        recipe = Recipe.model_validate(document.data, context=document.folder)
    except ValidationError as error:
        note_errors(error, document)
    if recipe is None or document.problems:
        raise RecipeError(document.lines())
    return recipe


def _plain_containers(value: object, depth: int) -> object:
    """``value`` with every mapping as a dict, so that only dicts and lists need to be told apart."""
    if not depth:
        raise RecipeError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {
            encodable(key) if isinstance(key, str) else key: _plain_containers(item, depth - 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain_containers(item, depth - 1) for item in value]
    return value
