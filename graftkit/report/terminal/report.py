"""A report as text: what was verified, and what to paste into a trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.report.terminal.tables import Lines, captured, open_console, table, text
from graftkit.report.terminal.tokens import TOKENS

if TYPE_CHECKING:
    from graftkit.report.report import Report


def report_text(report: Report) -> str:
    """What `graftkit apply` prints behind the plan."""
    return captured(lambda console: print_report(report, console))


def print_report(report: Report, console: Lines | None = None) -> None:
    """Print what was verified, with the figures, and the lines to paste into a trainer's config."""
    console = console or open_console()
    shown = table("verification", "check", "result", "figure")
    for row in report.rows():
        shown.add_row(*map(text, row))
    console.print(shown)
    for found in report.tokenization:
        for difference in found.differences[:TOKENS]:
            console.print(f"[yellow]note:[/yellow] {text(difference)}")
        if len(found.differences) > TOKENS:
            more = len(found.differences) - TOKENS
            console.print(
                f"[dim]… and {more:,} more {'text' if more == 1 else 'texts'} that new tokens split (graft_report.json)[/dim]"
            )
        for note in found.notes:
            console.print(f"[dim]note:[/dim] {text(note)}")
    alone = (report.by_ranks or {}).get("run_by_rank_0_alone")
    if alone:
        console.print(f"[yellow]note:[/yellow] the models were run by rank 0 alone: {text(alone)}")
    in_memory = report.plan.in_memory
    missing = "; ".join(item["what"] for item in report.to_json()["not_checked"])
    why = "" if in_memory else " [dim](why: graft_report.html)[/dim]"
    console.print(f"[dim]not checked:[/dim] {text(missing)}{why}")
    console.print(f"[green]{text(report.verdict)}[/green]")
    console.print("in memory; nothing was written" if in_memory else f"written to {text(report.plan.recipe.output)}")
    if report.snippets:
        console.print("\n[bold]to train from it[/bold]")
        console.paste("\n".join(text(line) for line in report.snippets.splitlines()))
