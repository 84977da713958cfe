"""What each command does: call the library and print what it gives. Torch is imported late, by what needs it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.checkpoint.hub.upload import check_base, check_upload, upload
from graftkit.checkpoint.stamps import unchanged
from graftkit.errors import RecipeError, printable
from graftkit.process import require_threads
from graftkit.recipe.paths import is_url

if TYPE_CHECKING:
    from graftkit.planned import Plan
    from graftkit.recipe import Recipe
    from graftkit.recipe.problems import Document


#: Commands that print values of their own with ``--json``.
PRINT_JSON = ("init", "validate", "plan", "apply", "inspect", "diff", "verify", "report", "selftest", "completion")


def _recipe(options: Namespace) -> tuple[Recipe, Document]:
    """The recipe, and the document that knows where its values stand."""
    from graftkit.recipe.load import load_with_places

    overrides = list(options.overrides)
    if getattr(options, "output", None) is not None:
        overrides.append(f"output={json.dumps(options.output)}")
    return load_with_places(_path(options.recipe), overrides)


def _path(given: str) -> str:
    """A path of the command line, with ``~`` and ``${NAME}`` expanded as in a recipe, whatever the shell did."""
    from graftkit.recipe.paths import expand_path

    try:
        return expand_path(given)
    except ValueError as error:
        raise RecipeError(f"{printable(given)}: {printable(error)}") from error


def _print_json(value: object) -> int:
    from graftkit.report.json_text import json_text

    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    sys.stdout.write(f"{json_text(value, escape=not utf8)}\n")
    return 0


def print_error(lines: Sequence[str], code: int, committed: Sequence[Path | str]) -> None:
    """Print an error as JSON, with the output that is in place all the same, if one is."""
    _print_json({"error": list(lines), "exit_code": code, "committed": str(committed[0]) if committed else None})


def init(options: Namespace) -> int:
    """Draft a recipe for a model, and print it or write it to a new file."""
    target = None if options.output is None else Path(_path(options.output))
    if target is not None and os.path.lexists(target):
        raise RecipeError(f"{printable(target)}: exists; name another file, or remove it")
    model = _path(options.model)
    _quiet_libraries()
    from graftkit.drafting.init import draft_recipe

    drafted = draft_recipe(model, options.kind, revision=options.revision)
    if target is not None:
        with target.open("x", encoding="utf-8", newline="\n") as file:
            file.write(drafted.text)
    if options.json:
        written = None if target is None else str(target)
        return _print_json({"kind": drafted.kind, "written": written, "recipe": drafted.recipe, "text": drafted.text})
    if target is None:
        sys.stdout.write(drafted.text)
    else:
        sys.stdout.write(f"written to {printable(target)}; next: graftkit plan {printable(target)}\n")
    return 0


def validate(options: Namespace) -> int:
    """Check a recipe without touching a checkpoint."""
    recipe, _ = _recipe(options)
    operations = [spec.op for spec in recipe.operations]
    if options.json:
        return _print_json({"valid": True, "operations": operations})
    sys.stdout.write(f"{printable(options.recipe)}: valid: {', '.join(operations)}\n")
    return 0


def schema(options: Namespace) -> int:
    """Print the JSON Schema of recipes, or of what a command prints."""
    if options.of:
        _quiet_libraries()
        from graftkit.printed_json import printed_schema

        return _print_json(printed_schema(options.of))
    from graftkit.recipe import json_schema

    return _print_json(json_schema())


def completion(parser: ArgumentParser, options: Namespace) -> int:
    """Print the script with which a shell completes the command line."""
    from graftkit.completion import completion_script

    script = completion_script(parser, options.shell)
    if options.json:
        return _print_json({"shell": options.shell, "script": script})
    sys.stdout.write(f"{script}\n")
    return 0


def _quiet_libraries() -> None:
    """Nothing but graftkit's own words on the terminal; set before transformers is imported."""
    require_threads()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _plan(recipe: Recipe, document: Document, options: Namespace) -> Plan:
    """Plan a recipe; an output that could not be written is refused first, and one that meets the source as soon as that is known."""
    from graftkit import engine
    from graftkit.checkpoint.output_place import refuse_output
    from graftkit.checkpoint.stores.upload import refuse_store_output
    from graftkit.recipe.load import places_added
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
    return planned


def plan(options: Namespace) -> int:
    """Show what `apply` would write."""
    recipe, document = _recipe(options)
    _quiet_libraries()
    from graftkit.report import terminal
    from graftkit.report.plan_json import plan_json

    planned = _plan(recipe, document, options)
    if options.json:
        return _print_json(plan_json(planned))
    if not options.quiet:
        terminal.print_plan(planned, verbose=options.verbose)
    return 0


def apply(options: Namespace) -> int:
    """Plan, write, verify, commit."""
    _check_push(options)
    if options.dry_run:
        return plan(options)
    recipe, document = _recipe(options)
    _refuse_stores(options, recipe)
    if options.if_changed and _is_up_to_date(options, recipe):
        _push(options, recipe.output)
        return _print_json({"up_to_date": True, "output": recipe.output}) if options.json else 0
    _quiet_libraries()
    from graftkit import engine
    from graftkit.recipe.load import places_added
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
            committed=options.committed,
        )  # fmt: skip
    if not silent:
        terminal.print_report(written)
    _push(options, recipe.output)
    return _print_json(written.to_json()) if options.json else 0


def _check_push(options: Namespace) -> None:
    """Refuse what is meaningless with --push-to-hub, or without, and an upload that cannot be tried."""
    if options.public and not options.push_to_hub:
        raise RecipeError("--public: is for --push-to-hub; leave it out")
    if options.push_to_hub and options.dry_run:
        raise RecipeError("--push-to-hub: nothing is written with --dry-run; leave one out")
    if options.push_to_hub:
        _quiet_libraries()
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
    """Whether the output is what the recipe gives; says so, or what has changed."""
    from graftkit.report.up_to_date import why_stale

    why = why_stale(recipe)
    if not (options.quiet or options.json) and os.path.lexists(recipe.output):
        said = f"not up to date: {why}" if why else f"up to date: {printable(recipe.output)}"
        sys.stdout.write(f"{said}\n")
    return not why


def inspect(options: Namespace) -> int:
    """Show what a checkpoint is."""
    _quiet_libraries()
    import dataclasses

    from graftkit import inspection
    from graftkit.report import terminal

    found = inspection.inspect(options.model, revision=options.revision, nonfinite=options.nonfinite)
    if options.json:
        return _print_json(dataclasses.asdict(found))
    terminal.print_inspection(found)
    return 0


def diff(options: Namespace) -> int:
    """Compare two checkpoints, or two adapters, tensor by tensor."""
    _quiet_libraries()
    import dataclasses

    from graftkit import compare
    from graftkit.report import terminal

    with unchanged(options.a, options.b):
        found = compare.diff(options.a, options.b)
    if options.json:
        _print_json(dataclasses.asdict(found))
    else:
        terminal.print_difference(found, verbose=options.verbose)
    return 1 if options.exit_code and (found.tensors or found.values) else 0


def verify(options: Namespace) -> int:
    """Check that B behaves like A, an adapter on its base, or that B is A with an adapter merged into it."""
    if options.b is None and not options.adapter:
        raise RecipeError("verify: give two checkpoints A and B, or --adapter DIR and at most its base A")
    if options.adapter:
        alone = [name for name in ("lens", "signal", "report", "paged", "device") if getattr(options, name, None)]
        if alone:
            raise RecipeError(f"--{alone[0]}: is for two checkpoints; leave it out with --adapter")
        return _verify_adapter(options) if options.b is None else _verify_merge(options)
    _quiet_libraries()
    from graftkit import compare
    from graftkit.errors import VerificationFailed
    from graftkit.report import terminal

    if options.device and not (options.lens or options.signal):
        raise RecipeError("--device: only lens and signal run on it; add --lens or --signal")
    with unchanged(options.a, options.b), _naming_damage(options.b), terminal.progress(silent=options.json) as progress:
        found = compare.verify(
            options.a, options.b, outputs=not options.no_outputs, lens=options.lens, signal=options.signal,
            device=options.device, paged=options.paged,
            progress=(lambda what, share: progress(what, share, 1.0)) if progress else None,
        )  # fmt: skip
    if options.report:
        from graftkit.report.comparison import write_comparison

        write_comparison(options.a, options.b, found, Path(_path(options.report)))
    if options.json:
        _print_json(found.to_json())
    else:
        terminal.print_verification(found)
    return VerificationFailed.exit_code if found.failures else 0


@contextlib.contextmanager
def _naming_damage(result: str) -> Iterator[None]:
    """Where a checkpoint is refused that its report describes, name the files that are not as they were written."""
    from graftkit.errors import InputRejected, few
    from graftkit.report.manifest import changed_files

    try:
        yield
    except InputRejected as error:
        if changed := changed_files(Path(result)):
            raise InputRejected(f"{error}; by the report beside it, not as written: {few(changed)}") from error
        raise


def report(options: Namespace) -> int:
    """Make the page of an output again."""
    from graftkit.report.page import write_page

    page = str(write_page(Path(_path(options.dir))))
    if options.json:
        return _print_json({"page": page})
    sys.stdout.write(f"{printable(page)}\n")
    return 0


def selftest(options: Namespace) -> int:
    """Verify the verifier."""
    _quiet_libraries()
    from graftkit.errors import VerificationFailed
    from graftkit.report import selftest_table, terminal
    from graftkit.selftest import run

    with terminal.progress(silent=options.quiet or options.json) as progress:
        found = run.selftest(
            options.model, leave_out=options.without, outputs=not options.no_outputs, progress=progress
        )
    if options.json:
        _print_json(found.to_json())
    else:
        selftest_table.print_selftest(found, verbose=options.verbose, quiet=options.quiet)
    return VerificationFailed.exit_code if found.failures else 0


def _verify_merge(options: Namespace) -> int:
    if options.no_outputs:
        raise RecipeError(
            "--no-outputs: a merge is replayed with both models loaded; leave it out with A, B and --adapter"
        )
    _quiet_libraries()
    from graftkit.errors import VerificationFailed
    from graftkit.merge_verification import verify_merge
    from graftkit.report import terminal

    with unchanged(_path(options.adapter), options.a, options.b), _naming_damage(options.b):
        found = verify_merge(options.a, options.b, _path(options.adapter))
    if options.json:
        _print_json(found.to_json())
    else:
        terminal.print_merge_verification(found)
    return VerificationFailed.exit_code if found.failures else 0


def _verify_adapter(options: Namespace) -> int:
    _quiet_libraries()
    from graftkit.adapter_verification import verify_adapter
    from graftkit.errors import VerificationFailed
    from graftkit.report import terminal

    with unchanged(_path(options.adapter), options.a):
        found = verify_adapter(_path(options.adapter), options.a, outputs=not options.no_outputs)
    if options.json:
        _print_json(found.to_json())
    else:
        terminal.print_adapter_verification(found)
    return VerificationFailed.exit_code if found.failures else 0
