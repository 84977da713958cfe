"""What `inspect` found, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.errors import plural
from graftkit.report.size import size
from graftkit.report.terminal.blocks import print_block_costs
from graftkit.report.terminal.cells import shape_words
from graftkit.report.terminal.modules import print_modules
from graftkit.report.terminal.tables import Lines, open_console, table, text
from graftkit.report.terminal.tokens import never_trained

if TYPE_CHECKING:
    from graftkit.inspection import Inspection


def print_inspection(found: Inspection) -> None:
    """Print an inspection."""
    console = open_console()
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    console.print(f"[bold]{text(found.name)}[/bold]  {text(found.architecture)} ({text(found.model_type)})")
    console.print(
        f"parameters  {found.parameters:,} in {plural(found.shards, 'shard')}, {size(found.nbytes)}; tensors: {dtypes}"
    )
    print_modules(console, found)
    if found.rows:
        _print_vocabulary(console, found)
    else:
        console.print(f"vocabulary  none: {text(found.input)} is what the class takes")
    if found.value_head:
        console.print(f"value head  {text(found.value_head)}")
    for role, content in found.special.items():
        console.print(f"{role:<11} {text(content)}")
    for finding in found.findings:
        console.print(f"[yellow]finding:[/yellow] {text(finding)}")
    if found.blocks is not None:
        print_block_costs(console, found.blocks)
    if found.nonfinite is not None:
        names = ", ".join(map(text, found.nonfinite)) or "none"
        console.print(f"tensors with NaN or infinity: {names}")


def _print_vocabulary(console: Lines, found: Inspection) -> None:
    untied = any(item.role == "output" for item in found.tables)
    padding = f" ({found.padding_rows:,} padding)" if found.padding_rows else ""
    tied = "tied" if found.tied else "not tied" if untied else "no output table"
    console.print(
        f"vocabulary  {plural(found.tokens, 'token')}, {plural(found.rows, 'row')}{padding}, {tied},"
        f" size in {', '.join(found.config_paths)}"
    )
    shown = table("vocabulary tensors", "name", "role", "dtype", "shape", "live", "zero", "near zero", "duplicates")
    for item in found.tables:
        counts = (item.live, item.zero, item.near_zero, item.duplicates)
        counted = ("-" if count is None else str(count) for count in counts)
        shown.add_row(text(item.name), item.role, item.dtype, shape_words(item.shape), *counted)
    console.print(shown)
    if found.bytes_on_hub:
        console.print(
            f"[dim]rows not looked at: {size(found.bytes_on_hub)} of weights are on the hub; --nonfinite downloads them,"
            f" or hf download {text(found.name)}[/dim]"
        )
    for line in never_trained(found):
        console.print(f"[yellow]never trained:[/yellow] {text(line)}")
