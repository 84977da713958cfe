"""rename_tokens: other names for tokens, in every file that names them; ids stay, and so do rows unless they are made anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import Renamed, Renaming, read_tokenizer
from graftkit.checkpoint.tokenizer import rename_tokens as rename_in_files
from graftkit.checkpoint.tokenizer.notes import slow_notes
from graftkit.checkpoint.tokenizer.renamed_places import stands_out
from graftkit.checkpoint.tokenizer.renaming import mentions
from graftkit.checkpoint.tokenizer.template_notes import templates
from graftkit.checkpoint.tokenizer.vocabulary import AddedEntry
from graftkit.errors import RecipeError, few, plural, printable
from graftkit.operations.base import Context, Outcome, VocabularyOutcome
from graftkit.operations.vocabulary.figures import row_figures
from graftkit.operations.vocabulary.remade import Remade, Wanted, remake, table_notes
from graftkit.operations.vocabulary.tables import check_output_init, one_vocabulary
from graftkit.recipe import Keep, RenameTokens
from graftkit.verification.promises import Promise, PromiseClass

DOMAIN = "sequences of token ids; text with a renamed token reads as before under the new name"


def rename_tokens(spec: RenameTokens, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Give tokens other names; with an ``init``, their rows are made anew too.

    Raises:
        InputRejected: there is no tokenizer that can be edited, or new rows are wanted of tables that cannot be told.
        RecipeError: a token is not there, a name is taken, or a token is needed under its name.
    """
    tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    wanted = [
        Renaming(old, new.content, spec.special if new.special is None else new.special)
        for old, new in spec.names.items()
    ]
    documents, entries = rename_in_files(checkpoint.documents, wanted)
    result = checkpoint.with_documents(documents)
    remade = _remade(spec, checkpoint, context, entries)
    if remade is not None:
        result = result.with_tensors({name: remade.checkpoint.tensors[name] for name in _changed(checkpoint, remade)})
    ids = {entry.content: entry.index for entry in entries.values()}
    outcome = VocabularyOutcome(
        {},
        frozenset(),
        chat_template_changed=False,
        kl=remade.maker.kl_promise if remade else lambda: None,
        given_rows={token: index for token, index in ids.items() if remade and index in remade.maker.ids},
        renamed={old: Renamed(entry.content, entry.special) for old, entry in entries.items()},
        renamed_ids=ids,
        makes_rows=remade is not None,
    )
    kept = Outcome(
        result,
        Promise(PromiseClass.BITWISE, "hidden states and logits", DOMAIN),
        tuple(_notes(checkpoint, entries, {entry.content for entry in tokenizer.added})),
        vocabulary=outcome,
    )
    if remade is None:
        return kept
    maker, names = remade.maker, dict(tokenizer.tokens) | {entry.index: entry.content for entry in entries.values()}
    return replace(
        kept,
        promise=remade.promise,
        notes=(*kept.notes, *table_notes(maker.vocabulary)),
        correspondence=remade.correspondence,
        checks=maker.checks,
        figures=lambda: row_figures(maker, names.get),
    )


def _remade(
    spec: RenameTokens, checkpoint: Checkpoint, context: Context, entries: Mapping[str, AddedEntry]
) -> Remade | None:
    """The rows of the renamed tokens that are not kept, None where all are."""
    wanted = {
        entries[old].index: Wanted(new.content, init, new.output_init or spec.output_init)
        for old, new in spec.names.items()
        if not isinstance(init := new.init or spec.init, Keep)
    }
    if not wanted:
        return None
    vocabulary = one_vocabulary(checkpoint)
    check_output_init(vocabulary, given=any(row.output for row in wanted.values()))
    past = [row.content for index, row in wanted.items() if index >= vocabulary.rows]
    if past:
        raise RecipeError(
            f"{printable(past[0])!r} has no row among the table's {vocabulary.rows}; extend_vocab makes it",
            field="init",
        )
    tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    return remake(checkpoint, vocabulary, tokenizer, wanted, context)


def _changed(checkpoint: Checkpoint, remade: Remade) -> Iterator[str]:
    made = remade.checkpoint.tensors
    return (name for name, tensor in checkpoint.tensors.items() if made[name] is not tensor)


def _notes(checkpoint: Checkpoint, entries: Mapping[str, AddedEntry], added: set[str]) -> Iterator[str]:
    documents: Mapping[str, Any] = checkpoint.documents
    yield from mentions(documents, entries)
    if pieces := [old for old in entries if old not in added]:
        yield (
            f"{plural(len(pieces), 'token')} of the model's vocabulary alone: {few(pieces)}; under the new name found in text as a"
            " whole, and text that the old piece was part of is split without it"
        )
    words = [old for old in entries if not stands_out(old)]
    for name, text in templates(documents).items():
        if held := [word for word in words if word in text]:
            which = f"the chat template {printable(name)!r}" if name else "the chat template"
            yield f"{which} holds the text {few(held)}, which stays: it may be a word of its own"
    yield from slow_notes([*documents, *checkpoint.carried])
