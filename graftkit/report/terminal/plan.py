"""A plan as text: every change that `apply` would make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.checkpoint.weights_on_hub import bytes_on_hub
from graftkit.errors import plural
from graftkit.report.size import size
from graftkit.report.terminal.cells import print_more, shape_words, short
from graftkit.report.terminal.modules import print_adapted
from graftkit.report.terminal.tables import Lines, captured, open_console, table, text
from graftkit.report.terminal.tokens import token_table

if TYPE_CHECKING:
    from graftkit.planned import Plan


#: How many changed values and tensors a plan shows without ``--verbose``.
SHOWN = 12

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


def plan_text(plan: Plan) -> str:
    """What `graftkit plan` prints."""
    return captured(lambda console: print_plan(plan, verbose=False, console=console))


def print_plan(plan: Plan, *, verbose: bool, console: Lines | None = None) -> None:
    """Print every change that `apply` would make."""
    console = console or open_console()
    console.print(f"[bold]plan[/bold] {text(plan.source.name)} -> {text(plan.recipe.output)}")
    _print_tensors(console, plan, verbose=verbose)
    print_adapted(console, plan)
    tokens, left_out = token_table(plan, verbose=verbose)
    if tokens.row_count:
        console.print(tokens)
    print_more(console, left_out)
    values = table("config and tokenizer", "file", "place", "before", "after")
    changes = plan.values if verbose else plan.values[:SHOWN]
    for value in changes:
        values.add_row(text(value.document), text(value.place), short(value.old), short(value.new))
    console.print(values if plan.values else "config and tokenizer stay as they are")
    if len(plan.values) > len(changes):
        console.print(f"[dim]… and {len(plan.values) - len(changes)} more (--verbose)[/dim]")
    for note in (*plan.notes, *plan.source.notes, *plan.source.remote_code):
        console.print(f"[dim]note:[/dim] {text(note)}")
    for name, reason in plan.source.left_behind.items():
        console.print(f"[dim]not copied:[/dim] {text(name)} ({text(reason)})")
    console.print(f"promise    {text(plan.promise.sentence())}")
    kept, made = ("shared", "made") if plan.in_memory else ("copied unchanged", "rewritten")
    console.print(f"bytes      {kept} {size(plan.bytes_taken_over)}, {made} {size(plan.bytes_written)}")
    console.print(f"memory     about {size(plan.memory)} on top of the loaded libraries")
    if there := bytes_on_hub(plan.source):
        what = "to download" if plan.reads_weights else "stay on the hub"
        console.print(f"weights    {size(there)} {what}")


def _print_tensors(console: Lines, plan: Plan, *, verbose: bool) -> None:
    reshaped = any(change.old_shape != change.new_shape for change in plan.tensors) or plan.adapter is not None
    shapes = ("before", "after") if reshaped else ("shape",)
    tensors = table("tensors", "name", "dtype", *shapes, "new bytes", "change", "operation")
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
        before_and_after = (shape_words(change.old_shape), shape_words(change.new_shape))[-len(shapes) :]
        tensors.add_row(
            text(change.name),
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
            shown = f"{text(found[0].old_name)} -> {text(found[0].name)}"
            if len(found) == 1:
                console.print(f"[dim]{CARRIED_ONE[kind]}: {shown}[/dim]")
            else:
                console.print(f"[dim]{len(found)} {what}, such as {shown}[/dim]")
    if len(summed_up) > len(carried):
        console.print(f"[dim]{plural(len(dropped), 'tensor')} are dropped, such as {text(dropped[0].name)}[/dim]")
