"""`inspect`, `diff` and `report`: what is there, without a verdict."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from graftkit.checkpoint.stamps import unchanged
from graftkit.commands.shared import expand, print_json, quiet_libraries
from graftkit.errors import RecipeError, printable


def inspect(options: Namespace) -> int:
    """Show what a checkpoint is."""
    if options.blocks != bool(options.texts):
        given, other = ("--blocks", "--texts FILE") if options.blocks else ("--texts", "--blocks")
        raise RecipeError(f"{given}: is for both, --blocks --texts FILE; add {other}")
    texts = expand(options.texts) if options.texts else None
    quiet_libraries()
    import dataclasses

    from graftkit import inspection
    from graftkit.report import terminal

    with terminal.progress(silent=options.json) as progress:
        found = inspection.inspect(
            options.model, revision=options.revision, nonfinite=options.nonfinite, texts=texts,
            progress=(lambda what, share: progress(what, share, 1.0)) if progress else None,
        )  # fmt: skip
    if options.json:
        return print_json(dataclasses.asdict(found))
    terminal.print_inspection(found)
    return 0


def diff(options: Namespace) -> int:
    """Compare two checkpoints, or two adapters, tensor by tensor."""
    quiet_libraries()
    import dataclasses

    from graftkit import compare
    from graftkit.report import terminal

    with unchanged(options.a, options.b):
        found = compare.diff(options.a, options.b)
    if options.json:
        print_json(dataclasses.asdict(found))
    else:
        terminal.print_difference(found, verbose=options.verbose)
    return 1 if options.exit_code and (found.tensors or found.values) else 0


def report(options: Namespace) -> int:
    """Make the page of an output again, and say what of the output is not what the report says."""
    from graftkit.errors import few
    from graftkit.report.manifest import changed_files
    from graftkit.report.page import PAGE, write_page

    folder = Path(expand(options.dir))
    changed = [name for name in changed_files(folder) if name != PAGE]
    page = str(write_page(folder))
    if options.json:
        return print_json({"page": page, "not_as_written": changed})
    sys.stdout.write(f"{printable(page)}\n")
    if changed:
        sys.stderr.write(f"graftkit: the report is not of what lies there now; not as written: {few(changed)}\n")
    return 0
