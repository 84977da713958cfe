"""What an operation on blocks hands over: the promise, which block is which, and the list of new ones for a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import plural
from graftkit.operations.base import Outcome
from graftkit.operations.blocks.arrange import Arranged
from graftkit.operations.given_texts import texts_checks
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope


def changed_outcome(arranged: Arranged, texts: str | None) -> Outcome:
    """The outcome of blocks that are copied, dropped or moved on purpose: what that changes is measured, on ``texts`` too.

    Raises:
        RecipeError: the file of texts cannot be read, or holds none.
    """
    promise = Promise(PromiseClass.INTENTIONAL, _change(arranged), EVERY_INPUT)
    found = outcome_of(arranged, arranged.checkpoint, promise, Scope.MEASURE)
    return replace(found, checks=texts_checks(texts))


def _change(arranged: Arranged) -> str:
    """What is another than it was, such as ``4 blocks are dropped``."""
    own = [source for source, moved in zip(arranged.order, arranged.moved, strict=True) if moved]
    counts = {"dropped": arranged.stack.layers.count - len(own), "copied": len(arranged.fresh)}
    parts = [
        f"{plural(count, 'block')} {'is' if count == 1 else 'are'} {what}" for what, count in counts.items() if count
    ]
    parts += ["blocks are in another order"] if own != sorted(own) else []
    return " and ".join(parts)


def outcome_of(
    arranged: Arranged, checkpoint: Checkpoint, promise: Promise, scope: Scope, notes: Sequence[str] = (),
    prepare: Callable[[Callable[[float], None]], None] | None = None,
) -> Outcome:  # fmt: skip
    """The outcome of a checkpoint with the blocks of ``arranged``."""
    path = arranged.stack.layers.path
    new = [f"{path}.{place}" for place in arranged.fresh]
    return Outcome(
        checkpoint,
        promise,
        (*_notes(arranged), *notes),
        correspondence=arranged.correspondence,
        scope=scope,
        prepare=prepare,
        figures=lambda: {"blocks": list(arranged.order), "new_blocks": new},
    )


def _notes(arranged: Arranged) -> Iterator[str]:
    layers = arranged.stack.layers
    yield f"{layers.path} had {plural(layers.count, 'block')}, has {len(arranged.order)}"
    gone = sorted(set(range(layers.count)) - set(arranged.order))
    if gone:
        yield f"dropped: {'blocks' if len(gone) > 1 else 'block'} {_ranges(gone)}"
    if arranged.fresh:
        sources = [arranged.order[place] for place in arranged.fresh]
        yield f"new: {'blocks' if len(sources) > 1 else 'block'} {_ranges(arranged.fresh)}, copied from {_ranges(sources)}"


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3, 7, 9-11``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
