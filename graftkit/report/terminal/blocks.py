"""The table of what dropping each block of a model costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.errors import plural
from graftkit.report.terminal.tables import table, text

if TYPE_CHECKING:
    from rich.console import Console

    from graftkit.running.block_costs import BlockCosts


def print_block_costs(console: Console, found: BlockCosts) -> None:
    """Print the blocks, the one that costs least first, and why what is missing was not measured."""
    whole = "" if found.perplexity is None else f", perplexity {found.perplexity:.4g}"
    title = f"what dropping each block of {found.stack} costs, over {plural(found.tokens, 'token')}{whole}"
    rows = table(title, "block", "cosine", "KL", "perplexity", "change")
    for cost in found.blocks:
        change = "-"
        if cost.perplexity is not None and found.perplexity is not None:
            change = f"{cost.perplexity - found.perplexity:+.4g}"
        figures = (cost.cosine, cost.kl, cost.perplexity)
        rows.add_row(str(cost.block), *("-" if f is None else f"{f:.4g}" for f in figures), change)
    console.print(rows)
    console.print(
        "[dim]cosine of what a block is given and gives; KL(model, model without it) in nats: means over tokens[/dim]"
    )
    if found.not_measured:
        console.print(f"[yellow]not measured:[/yellow] {text(found.not_measured)}")
    for cost in found.blocks:
        if cost.refused:
            console.print(f"[yellow]block {cost.block} cannot be dropped:[/yellow] {text(cost.refused)}")
