"""Plans, reports and differences as text: for a terminal, and as what Python shows of the values."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from graftkit.checkpoint.weights_on_hub import bytes_on_hub
from graftkit.errors import plural
from graftkit.report.block_table import print_block_costs
from graftkit.report.comparison import comparison_rows, comparison_verdict
from graftkit.report.module_tables import print_adapted, print_modules
from graftkit.report.size import size
from graftkit.report.tables import Lines, captured
from graftkit.report.tables import open_console as _console
from graftkit.report.tables import table as _table
from graftkit.report.tables import text as _text
from graftkit.report.token_tables import TOKENS, never_trained, token_table
from graftkit.verification.checks import Row

if TYPE_CHECKING:
    from graftkit.adapter_verification import AdapterVerification
    from graftkit.compare import Difference, Verification
    from graftkit.engine import Progress
    from graftkit.inspection import Inspection
    from graftkit.merge_verification import MergeVerification
    from graftkit.planned import Plan
    from graftkit.report.report import Report

#: How many changed values and tensors a plan shows without ``--verbose``.
SHOWN = 12

#: The same of a comparison.
LISTED = 60

#: Changes of a name that leave the bytes as they are, one line for all of a kind; what is ``copied`` has its bytes twice.
CARRIED = {
    "renamed": "of them get the name that the new class gives them",
    "moved": "of them move to another block",
    "copied": "more are copies of others",
}
CARRIED_ONE = {
    "renamed": "one of them gets the name that the new class gives it",
    "moved": "one of them moves to another block",
    "copied": "one more is a copy of another",
}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape)) or "scalar"


def plan_text(plan: Plan) -> str:
    """What `graftkit plan` prints."""
    return captured(lambda console: print_plan(plan, verbose=False, console=console))


def print_plan(plan: Plan, *, verbose: bool, console: Lines | None = None) -> None:
    """Print every change that `apply` would make."""
    console = console or _console()
    console.print(f"[bold]plan[/bold] {_text(plan.source.name)} -> {_text(plan.recipe.output)}")
    _print_tensors(console, plan, verbose=verbose)
    print_adapted(console, plan)
    tokens, left_out = token_table(plan, verbose=verbose)
    if tokens.row_count:
        console.print(tokens)
    _more(console, left_out)
    values = _table("config and tokenizer", "file", "place", "before", "after")
    changes = plan.values if verbose else plan.values[:SHOWN]
    for value in changes:
        values.add_row(_text(value.document), _text(value.place), _short(value.old), _short(value.new))
    console.print(values if plan.values else "config and tokenizer stay as they are")
    if len(plan.values) > len(changes):
        console.print(f"[dim]… and {len(plan.values) - len(changes)} more (--verbose)[/dim]")
    for note in (*plan.notes, *plan.source.notes, *plan.source.remote_code):
        console.print(f"[dim]note:[/dim] {_text(note)}")
    for name, reason in plan.source.left_behind.items():
        console.print(f"[dim]not copied:[/dim] {_text(name)} ({_text(reason)})")
    console.print(f"promise    {_text(plan.promise.sentence())}")
    kept, made = ("shared", "made") if plan.in_memory else ("copied unchanged", "rewritten")
    console.print(f"bytes      {kept} {size(plan.bytes_taken_over)}, {made} {size(plan.bytes_written)}")
    console.print(f"memory     about {size(plan.memory)} on top of the loaded libraries")
    if there := bytes_on_hub(plan.source):
        what = "to download" if plan.reads_weights else "stay on the hub"
        console.print(f"weights    {size(there)} {what}")


def _print_tensors(console: Lines, plan: Plan, *, verbose: bool) -> None:
    reshaped = any(change.old_shape != change.new_shape for change in plan.tensors) or plan.adapter is not None
    shapes = ("before", "after") if reshaped else ("shape",)
    tensors = _table("tensors", "name", "dtype", *shapes, "new bytes", "change", "operation")
    carried = [change for change in plan.tensors if change.kind in CARRIED]
    dropped = [change for change in plan.tensors if change.kind == "dropped"]
    summed_up = {*carried, *(dropped if len(dropped) > SHOWN and not verbose else ())}
    for change in plan.tensors:
        if change in summed_up:
            continue
        made = f"{plural(change.rows, 'row')} made"
        words = {
            "patched": made,
            "trimmed": f"{plural(change.rows, 'row')} dropped",
            "gathered": f"{made}, the others moved",
        }
        what = words.get(change.kind, change.kind)
        before_and_after = (_shape(change.old_shape), _shape(change.new_shape))[-len(shapes) :]
        tensors.add_row(
            _text(change.name),
            change.dtype,
            *before_and_after,
            size(change.produced) if change.produced else "-",
            what,
            change.operation,
        )
    if plan.adapter is not None:
        made = next(spec.op for spec, done in zip(plan.recipe.operations, plan.outcomes, strict=True) if done.adapter)
        tensors.add_row(
            "adapter/", "", "-", plural(len(plan.adapter.tensors), "tensor"), size(plan.adapter.nbytes), "made", made
        )
    kept = len(plan.result.all_tensors) - sum(
        change.new_shape is not None for change in plan.tensors if change.kind not in ("renamed", "moved")
    )
    console.print(tensors if tensors.row_count else "[dim]no tensor changes[/dim]")
    one = kept == 1
    kept_how = f"{'is' if one else 'are'} kept byte for byte"
    stays_how = f"{'stays where it is' if one else 'stay where they are'}: the base is not written again"
    if kept:
        console.print(f"[dim]{plural(kept, 'tensor')} {kept_how if plan.writes_base else stays_how}[/dim]")
    for kind, what in CARRIED.items():
        found = [change for change in carried if change.kind == kind]
        if found:
            shown = f"{_text(found[0].old_name)} -> {_text(found[0].name)}"
            if len(found) == 1:
                console.print(f"[dim]{CARRIED_ONE[kind]}: {shown}[/dim]")
            else:
                console.print(f"[dim]{len(found)} {what}, such as {shown}[/dim]")
    if len(summed_up) > len(carried):
        console.print(f"[dim]{plural(len(dropped), 'tensor')} are dropped, such as {_text(dropped[0].name)}[/dim]")


def _short(value: object, limit: int = 60) -> str:
    if value is None:
        return "[dim]-[/dim]"
    text = str(value)
    return _text(text if len(text) <= limit else f"{text[: limit - 1]}…")


@contextlib.contextmanager
def progress(*, silent: bool) -> Iterator[Progress | None]:
    """A progress bar with the time left for each phase, on standard error; nothing when silent or when that is not a terminal."""
    if silent or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<24}"), BarColumn(18), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("[dim]left[/dim]"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update


def report_text(report: Report) -> str:
    """What `graftkit apply` prints behind the plan."""
    return captured(lambda console: print_report(report, console))


def print_report(report: Report, console: Lines | None = None) -> None:
    """Print what was verified, with the figures, and the lines to paste into a trainer's config."""
    console = console or _console()
    table = _table("verification", "check", "result", "figure")
    for row in report.rows():
        table.add_row(*map(_text, row))
    console.print(table)
    for found in report.tokenization:
        for difference in found.differences[:TOKENS]:
            console.print(f"[yellow]note:[/yellow] {_text(difference)}")
        if len(found.differences) > TOKENS:
            more = len(found.differences) - TOKENS
            console.print(
                f"[dim]… and {more:,} more {'text' if more == 1 else 'texts'} that new tokens split (graft_report.json)[/dim]"
            )
        for note in found.notes:
            console.print(f"[dim]note:[/dim] {_text(note)}")
    in_memory = report.plan.in_memory
    missing = "; ".join(item["what"] for item in report.to_json()["not_checked"])
    why = "" if in_memory else " [dim](why: graft_report.html)[/dim]"
    console.print(f"[dim]not checked:[/dim] {_text(missing)}{why}")
    console.print(f"[green]{_text(report.verdict)}[/green]")
    console.print("in memory; nothing was written" if in_memory else f"written to {_text(report.plan.recipe.output)}")
    if report.snippets:
        console.print("\n[bold]to train from it[/bold]")
        console.paste(_text_lines(report.snippets))


def _text_lines(text: str) -> str:
    return "\n".join(_text(line) for line in text.splitlines())


def print_inspection(found: Inspection) -> None:
    """Print an inspection."""
    console = _console()
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    console.print(f"[bold]{_text(found.name)}[/bold]  {_text(found.architecture)} ({_text(found.model_type)})")
    console.print(
        f"parameters  {found.parameters:,} in {plural(found.shards, 'shard')}, {size(found.nbytes)}; tensors: {dtypes}"
    )
    print_modules(console, found)
    if found.rows:
        _print_vocabulary(console, found)
    else:
        console.print(f"vocabulary  none: {_text(found.input)} is what the class takes")
    if found.value_head:
        console.print(f"value head  {_text(found.value_head)}")
    for role, content in found.special.items():
        console.print(f"{role:<11} {_text(content)}")
    for finding in found.findings:
        console.print(f"[yellow]finding:[/yellow] {_text(finding)}")
    if found.blocks is not None:
        print_block_costs(console, found.blocks)
    if found.nonfinite is not None:
        names = ", ".join(map(_text, found.nonfinite)) or "none"
        console.print(f"tensors with NaN or infinity: {names}")


def _print_vocabulary(console: Lines, found: Inspection) -> None:
    untied = any(item.role == "output" for item in found.tables)
    padding = f" ({found.padding_rows:,} padding)" if found.padding_rows else ""
    tied = "tied" if found.tied else "not tied" if untied else "no output table"
    console.print(
        f"vocabulary  {plural(found.tokens, 'token')}, {plural(found.rows, 'row')}{padding}, {tied},"
        f" size in {', '.join(found.config_paths)}"
    )
    table = _table("vocabulary tensors", "name", "role", "dtype", "shape", "live", "zero", "near zero", "duplicates")
    for item in found.tables:
        counts = (item.live, item.zero, item.near_zero, item.duplicates)
        shown = ("-" if count is None else str(count) for count in counts)
        table.add_row(_text(item.name), item.role, item.dtype, _shape(item.shape), *shown)
    console.print(table)
    if found.bytes_on_hub:
        console.print(
            f"[dim]rows not looked at: {size(found.bytes_on_hub)} of weights are on the hub; --nonfinite downloads them,"
            f" or hf download {_text(found.name)}[/dim]"
        )
    for line in never_trained(found):
        console.print(f"[yellow]never trained:[/yellow] {_text(line)}")


def print_difference(found: Difference, *, verbose: bool) -> None:
    """Print what differs between two checkpoints; without ``verbose`` the first of many."""
    console = _console()
    listed = None if verbose else LISTED
    tensors, values = found.tensors[:listed], found.values[:listed]
    table = _table("tensors", "name", "change", "before", "after", "old rows changed", "max |Δ|")
    for item in tensors:
        largest = "-" if item.largest is None else f"{item.largest:.3g}"
        table.add_row(_text(item.name), item.kind, item.old or "-", item.new or "-", str(item.rows), largest)
    if tensors:
        console.print(table)
    _more(console, len(found.tensors) - len(tensors))
    differing = f", {len(found.tensors):,} not" if found.tensors else ""
    console.print(f"{plural(found.equal, 'tensor')} equal{differing}")
    changed = _table("config and tokenizer", "file", "place", "before", "after")
    for value in values:
        changed.add_row(_text(value.document), _text(value.place), _short(value.old), _short(value.new))
    console.print(changed if values else "config and tokenizer equal")
    _more(console, len(found.values) - len(values))


def _more(console: Lines, count: int) -> None:
    if count:
        console.print(f"[dim]… and {count:,} more (--verbose)[/dim]")


def verification_text(found: Verification) -> str:
    """What `graftkit verify` prints of two checkpoints."""
    return captured(lambda console: print_verification(found, console))


def print_verification(found: Verification, console: Lines | None = None) -> None:
    """Print the checks between two checkpoints."""
    verdict = "" if found.failures else comparison_verdict(found)
    _print_checks(found, comparison_rows(found), verdict, "green", console)


def print_adapter_verification(found: AdapterVerification) -> None:
    """Print the checks of an adapter on its base."""
    _console().print(f"adapter  {_text(found.adapter)}\nbase     {_text(found.base)}")
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
    _console().print(f"A        {_text(found.base)}\nB        {_text(found.merged)}\nadapter  {_text(found.adapter)}")
    _print_checks(found, found.rows(), found.verdict, "green" if found.origin.known_by else "yellow")


def _print_checks(
    found: Verification | AdapterVerification | MergeVerification,
    rows: Iterable[Row],
    verdict: str,
    colour: str,
    console: Lines | None = None,
) -> None:
    """Print a table of checks, what is worth knowing, and what failed or the verdict."""
    console = console or _console()
    table = _table("verification", "check", "result", "figure")
    for row in rows:
        table.add_row(*map(_text, row))
    console.print(table)
    for note in found.notes:
        console.print(f"[yellow]note:[/yellow] {_text(note)}")
    for failure in found.failures:
        console.print(f"[red]failed:[/red] {_text(failure)}")
    if not found.failures:
        console.print(f"[{colour}]{_text(verdict)}[/{colour}]")
