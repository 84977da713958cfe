"""The name of an output that can be written."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from graftkit.checkpoint.output_place import refuse_output
from graftkit.errors import RecipeError

#: So many names are tried in a folder.
TRIES = 100


def free_output(name: str, source: Path) -> str:
    """``out/<name>``, or the first of ``out/<name>-2``, ... that does not exist; beside the source where ``out`` would lie in it.

    Raises:
        RecipeError: none of them can be written.
    """
    name = re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model"
    refusal: RecipeError | None = None
    for folder in ("out", os.path.relpath(source.parent)):
        for count in itertools.islice(itertools.count(1), TRIES):
            place = Path(folder) / (name if count == 1 else f"{name}-{count}")
            try:
                refuse_output(place, source=source, overwrite=False)
            except RecipeError as error:
                refusal = refusal or error
            else:
                return str(place)
    raise refusal or RecipeError(f"output: {name}: no name is free")
