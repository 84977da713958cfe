"""reinit_rows: new rows for ids that are there already, such as reserved tokens that were never trained."""

from __future__ import annotations

from collections.abc import Mapping

from graftkit.architecture.vocabulary import Vocabulary, VocabularyTensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import row_chunks
from graftkit.checkpoint.tokenizer import TokenizerFiles, read_tokenizer
from graftkit.errors import RecipeError, plural, printable
from graftkit.initializers.never_trained import untrained_rows
from graftkit.initializers.statistics import table_statistics
from graftkit.operations.base import Context, Outcome, VocabularyOutcome
from graftkit.operations.vocabulary.figures import row_figures
from graftkit.operations.vocabulary.remade import Wanted, ranges, remake, table_notes
from graftkit.operations.vocabulary.tables import check_output_init, one_vocabulary
from graftkit.recipe import ReinitRows
from graftkit.recipe.reinit_rows import NEVER_TRAINED, IdRange
from graftkit.recipe_file.wording import did_you_mean, shown


def reinit_rows(spec: ReinitRows, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Make the rows of the chosen ids anew in every table that is indexed by the vocabulary; the tokenizer stays.

    To find the rows that were never trained, planning reads the input table.

    Raises:
        InputRejected: the checkpoint's tables cannot be told.
        RecipeError: a token or an id is not there, or nothing is chosen.
    """
    vocabulary = one_vocabulary(checkpoint)
    tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    check_output_init(vocabulary, given=spec.output_init is not None)
    chosen, notes = _chosen(spec, checkpoint, vocabulary, tokenizer)
    wanted = {index: Wanted(tokenizer.token_of(index), spec.init, spec.output_init) for index in chosen}
    remade = remake(checkpoint, vocabulary, tokenizer, wanted, context)
    maker = remade.maker
    outcome = VocabularyOutcome(
        {}, frozenset(), chat_template_changed=False, kl=maker.kl_promise,
        given_rows={token: index for index in maker.ids if (token := tokenizer.token_of(index)) is not None},
    )  # fmt: skip
    rows = f"{plural(len(maker.ids), 'row')} of each table made anew, of the ids {ranges(maker.ids)}"
    return Outcome(
        remade.checkpoint,
        remade.promise,
        (rows, *notes, *table_notes(vocabulary)),
        remade.correspondence,
        outcome,
        checks=maker.checks,
        figures=lambda: row_figures(maker, tokenizer.token_of),
    )


def _chosen(
    spec: ReinitRows, checkpoint: Checkpoint, vocabulary: Vocabulary, tokenizer: TokenizerFiles
) -> tuple[list[int], tuple[str, ...]]:
    """The ids whose rows are made anew, ascending, and notes on how they were found."""
    if spec.tokens == NEVER_TRAINED:
        return _never_trained(checkpoint, vocabulary, tokenizer)
    found: dict[int, int] = {}
    problems: list[tuple[int, str]] = []
    for place, item in enumerate(spec.tokens):
        ids, problem = _ids_of(item, vocabulary.rows, tokenizer)
        twice = [index for index in ids if index in found]
        if twice:
            problem = f"id {twice[0]} is chosen a second time, after tokens.{found[twice[0]]}"
        if problem:
            problems.append((place, problem))
        found |= {index: place for index in ids if index not in found}
    if problems:
        raise RecipeError([why for _, why in problems], field=[f"tokens.{place}" for place, _ in problems])
    return sorted(found), ()


def _ids_of(item: str | int | IdRange, rows: int, tokenizer: TokenizerFiles) -> tuple[range, str]:
    """The ids that an item of the list chooses, and what is wrong with it, one of them empty."""
    if isinstance(item, str):
        index = tokenizer.id_of(item)
        if index is None:
            close = did_you_mean(item, [entry.content for entry in tokenizer.added]) or did_you_mean(
                item, tokenizer.ids
            )
            nearest = f"; did you mean {shown(printable(close))}?" if close else ""
            return range(0), f"the tokenizer has no token {shown(printable(item))}{nearest}"
        ids = range(index, index + 1)
    else:
        ids = range(item, item + 1) if isinstance(item, int) else range(item.first, item.last + 1)
    if ids[-1] >= rows:
        return range(0), f"id {ids[-1]} has no row: the table has {rows}"
    return ids, ""


def _never_trained(
    checkpoint: Checkpoint, vocabulary: Vocabulary, tokenizer: TokenizerFiles
) -> tuple[list[int], tuple[str, ...]]:
    """The tokens whose input rows were never trained; a note counts them by reason."""
    live = min(tokenizer.size, vocabulary.rows)
    reasons = _untrained(checkpoint, vocabulary.of_role("input")[0], live, tokenizer)
    if not reasons:
        raise RecipeError(
            "no input row was never trained: none is zero, next to zero or equal to another", field="tokens"
        )
    counts = {reason: list(reasons.values()).count(reason) for reason in dict.fromkeys(reasons.values())}
    notes = [f"never trained, by their input rows: {', '.join(f'{n:,} {reason}' for reason, n in counts.items())}"]
    for item in vocabulary.of_role("output"):
        alone = [i for i in _untrained(checkpoint, item, live, tokenizer) if i not in reasons]
        if alone:
            notes.append(
                f"the output rows of {plural(len(alone), 'other token')} were never trained: {ranges(alone)}; their input rows"
                " were, so that they stay: choose these ids to make both anew"
            )
    return sorted(reasons), tuple(notes)


def _untrained(
    checkpoint: Checkpoint, item: VocabularyTensor, live: int, tokenizer: TokenizerFiles
) -> Mapping[int, str]:
    tensor = checkpoint.tensors[item.name]
    found = untrained_rows(table_statistics(lambda: row_chunks(tensor, item.axis, live), live))
    return {index: reason for index, reason in found.items() if index in tokenizer.tokens}
