"""`plan` and `apply`."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.checkpoint.hub.upload import check_base, check_upload, upload
from graftkit.commands.shared import print_json, quiet_libraries, read_recipe, written_recipe
from graftkit.errors import RecipeError, printable
from graftkit.recipe_file.paths import is_url

if TYPE_CHECKING:
    from graftkit.planned import Plan
    from graftkit.recipe import Recipe
    from graftkit.recipe_file.problems import Document


def plan(options: Namespace) -> int:
    """Show what `apply` would write."""
    recipe, document = read_recipe(options)
    quiet_libraries()
    from graftkit.report import terminal
    from graftkit.report.plan_json import plan_json

    planned = _plan(recipe, document, options)
    if options.json:
        return print_json(plan_json(planned))
    if not options.quiet:
        terminal.print_plan(planned, verbose=options.verbose)
    return 0


def apply(options: Namespace) -> int:
    """Plan, write, verify, commit."""
    _check_push(options)
    if options.dry_run:
        return plan(options)
    from graftkit.report.up_to_date import unchanged_output

    document = written_recipe(options)
    if options.if_changed and (output := unchanged_output(document)) is not None:
        return _leave(options, output)
    from graftkit.recipe.load import places_added, validated

    recipe = validated(document)
    _refuse_stores(options, recipe)
    if options.if_changed and _is_up_to_date(options, recipe):
        return _leave(options, recipe.output)
    quiet_libraries()
    from graftkit import engine
    from graftkit.report import terminal

    planned = _plan(recipe, document, options)
    if options.push_to_hub:
        check_base(planned.source.name, planned.source.revision)
    silent = options.quiet or options.json
    if not silent:
        terminal.print_plan(planned, verbose=options.verbose)
    with places_added(document), terminal.progress(silent=silent) as progress:
        written = engine.execute(
            planned, overwrite=options.overwrite, link=options.link, device=options.device, progress=progress,
            committed=options.committed, share=options.share or engine.WHOLE,
        )  # fmt: skip
    if not silent:
        terminal.print_report(written)
    _push(options, recipe.output)
    return print_json(written.to_json()) if options.json else 0


def _plan(recipe: Recipe, document: Document, options: Namespace) -> Plan:
    """Plan a recipe; an output that could not be written is refused first, and one that meets the source as soon as that is known."""
    from graftkit import engine
    from graftkit.checkpoint.output_place import refuse_output
    from graftkit.checkpoint.stores.upload import refuse_store_output
    from graftkit.recipe.load import places_added
    from graftkit.recipe_file.request import request_of
    from graftkit.report import terminal

    if is_url(recipe.output):
        refuse_store_output(recipe.output, base=recipe.base_model, overwrite=options.overwrite)
    else:
        refuse_output(Path(recipe.output), source=None, overwrite=options.overwrite)
    with places_added(document), terminal.progress(silent=options.quiet or options.json) as progress:
        planned = engine.plan(
            recipe,
            allow_pickle=options.allow_pickle,
            progress=(lambda what, share: progress(what, share, 1.0)) if progress else None,
        )
    if not is_url(recipe.output):
        refuse_output(Path(recipe.output), source=planned.source.directory, overwrite=options.overwrite)
    return replace(planned, request=request_of(document))


def _leave(options: Namespace, output: str) -> int:
    """Say that an output is up to date, and upload it where that is asked for."""
    if not (options.quiet or options.json):
        sys.stdout.write(f"up to date: {printable(output)}\n")
    _push(options, output)
    return print_json({"up_to_date": True, "output": output}) if options.json else 0


def _check_push(options: Namespace) -> None:
    """Refuse what is meaningless with --push-to-hub, or without, and an upload that cannot be tried."""
    if options.public and not options.push_to_hub:
        raise RecipeError("--public: is for --push-to-hub; leave it out")
    if options.push_to_hub and options.dry_run:
        raise RecipeError("--push-to-hub: nothing is written with --dry-run; leave one out")
    if options.push_to_hub:
        quiet_libraries()
        check_upload(options.push_to_hub)


def _refuse_stores(options: Namespace, recipe: Recipe) -> None:
    """Refuse what looks at an output on this machine where it is in a store."""
    for name in ("if_changed", "push_to_hub"):
        url = next((place for place in (recipe.output, recipe.base_model) if is_url(place)), None)
        if getattr(options, name) and url is not None:
            raise RecipeError(f"--{name.replace('_', '-')}: is for folders of this machine, not for {printable(url)}")


def _push(options: Namespace, output: str) -> None:
    """Upload what is in place, where that is asked for, and say where it is."""
    if options.push_to_hub:
        options.committed(Path(output))
        address = upload(Path(output), options.push_to_hub, public=options.public)
        if not (options.quiet or options.json):
            sys.stdout.write(f"uploaded to {printable(address)}\n")


def _is_up_to_date(options: Namespace, recipe: Recipe) -> bool:
    """Whether the output is what the recipe gives; says what has changed where something is there that is not."""
    from graftkit.report.up_to_date import why_stale

    why = why_stale(recipe)
    if why and not (options.quiet or options.json) and os.path.lexists(recipe.output):
        sys.stdout.write(f"not up to date: {why}\n")
    return not why
