"""A selftest as text for a terminal. Only the command line calls this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.report.terminal.tables import open_console, table, text

if TYPE_CHECKING:
    from graftkit.selftest.report import PlantedFault, Selftest

#: The checks that read files, and those that run what was loaded.
STRUCTURAL = ("loading", "report", "bytes", "config", "adapter", "base")
FUNCTIONAL = ("tokenizer", "peft", "outputs", "weights", "gradients", "merging")

COLUMNS = ("fault", "planted at", "structural", "functional", "weights by", "outputs by")


def print_selftest(found: Selftest, *, verbose: bool = False, quiet: bool = False) -> None:
    """Print each fault with the checks that saw it and by how much, what cannot exist here, and the verdict.

    ``verbose`` adds what each check said, and each clean copy.
    """
    out = open_console()
    if not quiet:
        rows = table(f"faults planted into {text(found.model)}", *COLUMNS)
        for fault in found.faults:
            rows.add_row(text(fault.name), *_cells(fault))
        out.print(rows)
    if verbose:
        for fault in found.planted:
            for check, sentence in fault.seen_by.items():
                out.print(f"[dim]{text(fault.name)}, {check}:[/dim] {text(sentence)}")
        for run in found.clean:
            out.print(f"[dim]clean copy:[/dim] {text(run.name)}")
    for failure in found.failures:
        out.print(f"[red]failed:[/red] {text(failure)}")
    if found.left_out:
        out.print(f"[yellow]switched off:[/yellow] {text(', '.join(found.left_out))}")
    colour = "red" if found.failures else "green"
    out.print(f"[{colour}]{text(found.verdict)}[/{colour}]")


def _cells(fault: PlantedFault) -> tuple[str, ...]:
    if fault.not_applicable:
        return ("-", "not applicable:", text(fault.not_applicable), "", "")
    structural, functional = (", ".join(c for c in kind if c in fault.seen_by) for kind in (STRUCTURAL, FUNCTIONAL))
    nothing = "-" if fault.seen_by else "NOT CAUGHT"
    return (
        text(fault.place),
        structural or nothing,
        functional or nothing,
        _amount(fault.weights),
        _amount(fault.outputs),
    )


def _amount(largest: float | None) -> str:
    return "-" if largest is None else f"{largest:.3g}"
