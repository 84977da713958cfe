"""Rows of ids that were there before, made anew: what the operations that do so have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.vocabulary import Vocabulary
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import TokenizerFiles
from graftkit.errors import RecipeError
from graftkit.operations.base import Context
from graftkit.operations.vocabulary.new_row import NewRow
from graftkit.operations.vocabulary.rows import RowMaker
from graftkit.operations.vocabulary.tables import with_rows
from graftkit.recipe import Mean, Scheme
from graftkit.verification.promises import Promise, PromiseClass


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the rows of one id are to be made; ``content`` is its token, None where it has none."""

    content: str | None
    init: Scheme
    output: Scheme | None


@dataclass(frozen=True, slots=True)
class Remade:
    """A checkpoint with rows made anew: ``maker`` makes them, and ``correspondence`` leaves them out."""

    checkpoint: Checkpoint
    maker: RowMaker
    correspondence: Correspondence
    promise: Promise


def remake(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    tokenizer: TokenizerFiles,
    wanted: Mapping[int, Wanted],
    context: Context,
) -> Remade:
    """Make the rows of the ids in ``wanted`` anew, in every table that is indexed by the vocabulary.

    Schemes average the rows of the other tokens alone, split as if the tokens of these ids were not there.

    Raises:
        RecipeError: no row of another token is left, or a scheme has no old token to average.
    """
    live = min(tokenizer.size, vocabulary.rows)
    if sum(index < live for index in wanted) == live:
        raise RecipeError("leaves no row of another token to start from", field="tokens")
    others = tokenizer.within(vocabulary.rows).without(wanted.keys())
    rows = [NewRow.resolve(index, row.content, row.init, row.output or Mean(), others) for index, row in wanted.items()]
    maker = RowMaker(checkpoint, vocabulary, live, tuple(rows), (context.seed, context.place))
    return Remade(
        checkpoint.with_tensors(dict(with_rows(vocabulary, maker, vocabulary.rows))),
        maker,
        Correspondence.of_ids(vocabulary.rows, vocabulary.rows, live, maker.ids),
        promise_of_others(vocabulary, len(rows)),
    )


def promise_of_others(vocabulary: Vocabulary, count: int) -> Promise:
    """What is promised where the rows of ``count`` ids are made anew."""
    what = "hidden states and logits over the other ids" if vocabulary.has_output else "hidden states"
    without = "the id whose row is new" if count == 1 else f"the {count:,} ids whose rows are new"
    return Promise(PromiseClass.BITWISE, what, f"sequences of token ids without {without}")


def table_notes(vocabulary: Vocabulary) -> Iterator[str]:
    """Yield whether a row of the input table is one of the output table too."""
    yield from vocabulary.notes
    if vocabulary.has_output:
        yield "input and output rows are tied: one row does both jobs" if vocabulary.tied else "untied output table"


def ranges(ids: Sequence[int]) -> str:
    """Ascending ids in few words: ``5, 9 to 12``."""
    runs: list[list[int]] = []
    for index in ids:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    shown = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    return ", ".join(shown[:10]) + (f", … ({len(ids):,} in all)" if len(shown) > 10 else "")
