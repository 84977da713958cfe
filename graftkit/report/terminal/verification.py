"""What `verify` found, in each of its forms, as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from graftkit.report.comparison import comparison_rows, comparison_verdict
from graftkit.report.terminal.tables import Lines, captured, open_console, table, text
from graftkit.verification.checks import Row

if TYPE_CHECKING:
    from graftkit.adapter_verification import AdapterVerification
    from graftkit.compare import Verification
    from graftkit.merge_verification import MergeVerification


def verification_text(found: Verification) -> str:
    """What `graftkit verify` prints of two checkpoints."""
    return captured(lambda console: print_verification(found, console))


def print_verification(found: Verification, console: Lines | None = None) -> None:
    """Print the checks between two checkpoints."""
    verdict = "" if found.failures else comparison_verdict(found)
    _print_checks(found, comparison_rows(found), verdict, "green", console)


def print_adapter_verification(found: AdapterVerification) -> None:
    """Print the checks of an adapter on its base."""
    open_console().print(f"adapter  {text(found.adapter)}\nbase     {text(found.base)}")
    same = "not compared" if found.report is None else "changed" if any(found.identity.values()) else "equal"
    base = "another one" if found.origin.different else "the adapter's" if found.origin.known_by else "not known"
    rows = (
        Row("digests", same, found.report or "no report"),
        Row("base", base, found.origin.known_by or found.origin.unknown),
        *found.check.rows(),
    )
    _print_checks(found, rows, found.verdict, "green" if found.origin.known_by else "yellow")


def print_merge_verification(found: MergeVerification) -> None:
    """Print the checks of a checkpoint that should be a base with an adapter merged into it."""
    open_console().print(f"A        {text(found.base)}\nB        {text(found.merged)}\nadapter  {text(found.adapter)}")
    _print_checks(found, found.rows(), found.verdict, "green" if found.origin.known_by else "yellow")


def _print_checks(
    found: Verification | AdapterVerification | MergeVerification,
    rows: Iterable[Row],
    verdict: str,
    colour: str,
    console: Lines | None = None,
) -> None:
    """Print a table of checks, what is worth knowing, and what failed or the verdict."""
    console = console or open_console()
    shown = table("verification", "check", "result", "figure")
    for row in rows:
        shown.add_row(*map(text, row))
    console.print(shown)
    for note in found.notes:
        console.print(f"[yellow]note:[/yellow] {text(note)}")
    for failure in found.failures:
        console.print(f"[red]failed:[/red] {text(failure)}")
    if not found.failures:
        console.print(f"[{colour}]{text(verdict)}[/{colour}]")
