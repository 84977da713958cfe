"""`init` and `validate`: recipes, without a checkpoint being changed or looked at for long."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

from graftkit.commands.shared import expand, print_json, quiet_libraries, read_recipe
from graftkit.errors import RecipeError, printable


def init(options: Namespace) -> int:
    """Draft a recipe for a model, and print it or write it to a new file."""
    target = None if options.output is None else Path(expand(options.output))
    if target is not None and os.path.lexists(target):
        raise RecipeError(f"{printable(target)}: exists; name another file, or remove it")
    model = expand(options.model)
    quiet_libraries()
    from graftkit.drafting.init import draft_recipe

    drafted = draft_recipe(model, options.kind, revision=options.revision)
    if target is not None:
        with target.open("x", encoding="utf-8", newline="\n") as file:
            file.write(drafted.text)
    if options.json:
        written = None if target is None else str(target)
        return print_json({"kind": drafted.kind, "written": written, "recipe": drafted.recipe, "text": drafted.text})
    if target is None:
        sys.stdout.write(drafted.text)
    else:
        sys.stdout.write(f"written to {printable(target)}; next: graftkit plan {printable(target)}\n")
    return 0


def validate(options: Namespace) -> int:
    """Check a recipe without touching a checkpoint."""
    recipe, _ = read_recipe(options)
    operations = [spec.op for spec in recipe.operations]
    if options.json:
        return print_json({"valid": True, "operations": operations})
    sys.stdout.write(f"{printable(options.recipe)}: valid: {', '.join(operations)}\n")
    return 0
