"""What `diff` found, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.errors import plural
from graftkit.report.terminal.cells import print_more, short
from graftkit.report.terminal.tables import open_console, table, text

if TYPE_CHECKING:
    from graftkit.compare import Difference


#: How many tensors, and how many values, are shown without ``--verbose``.
LISTED = 60


def print_difference(found: Difference, *, verbose: bool) -> None:
    """Print what differs between two checkpoints; without ``verbose`` the first of many."""
    console = open_console()
    listed = None if verbose else LISTED
    tensors, values = found.tensors[:listed], found.values[:listed]
    shown = table("tensors", "name", "change", "before", "after", "old rows changed", "max |Δ|")
    for item in tensors:
        largest = "-" if item.largest is None else f"{item.largest:.3g}"
        shown.add_row(text(item.name), item.kind, item.old or "-", item.new or "-", str(item.rows), largest)
    if tensors:
        console.print(shown)
    print_more(console, len(found.tensors) - len(tensors))
    differing = f", {len(found.tensors):,} not" if found.tensors else ""
    console.print(f"{plural(found.equal, 'tensor')} equal{differing}")
    changed = table("config and tokenizer", "file", "place", "before", "after")
    for value in values:
        changed.add_row(text(value.document), text(value.place), short(value.old), short(value.new))
    console.print(changed if values else "config and tokenizer equal")
    print_more(console, len(found.values) - len(values))
