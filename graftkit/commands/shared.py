"""What several commands do: read a recipe, expand a path, print JSON, quiet the libraries."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.errors import RecipeError, printable
from graftkit.process import require_threads
from graftkit.recipe_file.paths import expand_path

if TYPE_CHECKING:
    from graftkit.recipe import Recipe
    from graftkit.recipe_file.problems import Document


def read_recipe(options: Namespace) -> tuple[Recipe, Document]:
    """The recipe, and the document that knows where its values stand."""
    from graftkit.recipe.load import validated

    document = written_recipe(options)
    return validated(document), document


def written_recipe(options: Namespace) -> Document:
    """The recipe as it is written, with the overrides of the command line; nothing says yet what its values mean."""
    from graftkit.recipe_file.reading import read_document

    overrides = list(options.overrides)
    if getattr(options, "output", None) is not None:
        overrides.append(f"output={json.dumps(options.output)}")
    return read_document(expand(options.recipe), overrides)


def expand(given: str) -> str:
    """A path of the command line, with ``~`` and ``${NAME}`` expanded as in a recipe, whatever the shell did."""
    try:
        return expand_path(given)
    except ValueError as error:
        raise RecipeError(f"{printable(given)}: {printable(error)}") from error


def print_json(value: object) -> int:
    """Print a value as JSON, escaped where standard output is not UTF-8; return the exit code 0."""
    from graftkit.report.json_text import json_text

    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    sys.stdout.write(f"{json_text(value, escape=not utf8)}\n")
    return 0


def print_error(lines: Sequence[str], code: int, committed: Sequence[Path | str]) -> None:
    """Print an error as JSON, with the output that is in place all the same, if one is."""
    print_json({"error": list(lines), "exit_code": code, "committed": str(committed[0]) if committed else None})


def quiet_libraries() -> None:
    """Nothing but graftkit's own words on the terminal; set before transformers is imported."""
    require_threads()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
