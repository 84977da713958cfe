"""trim_vocab: fewer tokens, numbered anew in their old order; every kept row stays byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.missing_rows import missing_rows
from graftkit.architecture.skeleton import with_values
from graftkit.architecture.token_ids import renumbered
from graftkit.architecture.vocabulary import Vocabulary
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.gathered import Gathered, pick_rows
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.checkpoint.tokenizer.files import is_slow
from graftkit.checkpoint.tokenizer.id_places import doubtful_places
from graftkit.checkpoint.tokenizer.refusals import check_dense
from graftkit.errors import InputRejected, few, plural, printable
from graftkit.operations.base import Context, Outcome, VocabularyOutcome
from graftkit.operations.vocabulary.held_out import measure_held_out
from graftkit.operations.vocabulary.kept import Kept, kept_ids, kept_note
from graftkit.operations.vocabulary.new_row import NewRow
from graftkit.operations.vocabulary.rows import RowMaker
from graftkit.operations.vocabulary.still_needed import check_positions, check_still_needed
from graftkit.operations.vocabulary.tables import OTHER_KERNEL, check_renumbered, one_vocabulary, with_rows
from graftkit.recipe import Mean, TrimVocab
from graftkit.verification.promises import Promise, PromiseClass
from graftkit.verification.tokens.trimmed_texts import TrimmedTexts

DOMAIN = "sequences of kept token ids, and text that was split into kept tokens alone"


def trim_vocab(spec: TrimVocab, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Drop every token that is not to be kept, with its row in every tensor that is indexed by the vocabulary.

    Raises:
        InputRejected: the vocabulary of the checkpoint cannot be trimmed, and why.
        RecipeError: nothing would go, a listed token is not there, or one that would go is needed.
    """
    vocabulary = one_vocabulary(checkpoint)
    check_renumbered(checkpoint, vocabulary)
    tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    check_dense(tokenizer)
    if past := missing_rows(tokenizer, vocabulary.rows):
        raise InputRejected(f"{checkpoint.name}: {past}")
    kept = kept_ids(spec.keep, checkpoint, tokenizer, vocabulary.rows)
    check_still_needed(checkpoint.documents, tokenizer, kept.ids, kept.encode)
    ids = IndexMap.of_kept(vocabulary.rows, kept.ids)
    size = -(-ids.result // (spec.pad_to_multiple_of or 1)) * (spec.pad_to_multiple_of or 1)
    documents = _documents(checkpoint, vocabulary, ids, size)
    check_positions(checkpoint, vocabulary, documents["config.json"])
    trimmed = checkpoint.with_documents(documents).with_tensors(dict(_kept_rows(checkpoint, vocabulary, ids)))
    maker = _padding(trimmed, vocabulary, ids.result, size, context)
    live = min(tokenizer.size, vocabulary.rows)
    padded = IndexMap.grown(ids.result, size, maker.ids)
    return Outcome(
        trimmed.with_tensors(dict(with_rows(maker.vocabulary, maker, size))),
        _promise(vocabulary),
        tuple(_notes(checkpoint, vocabulary, kept, ids, size)),
        correspondence=Correspondence(ids.then(padded), live),
        vocabulary=VocabularyOutcome(
            {}, frozenset(), chat_template_changed=False, kl=maker.kl_promise, makes_rows=bool(maker.ids), moved=ids
        ),
        checks=tuple(_checks(spec, checkpoint, kept, vocabulary.rows)),
        figures=lambda: {
            "kept": ids.result, "dropped": ids.source - ids.result, "texts": kept.texts, "tokens_of_texts": kept.tokens,
            "reasons": dict(kept.reasons),
        },
    )  # fmt: skip


def _checks(spec: TrimVocab, checkpoint: Checkpoint, kept: Kept, rows: int) -> Iterator[TrimmedTexts]:
    if spec.keep.texts is not None:
        path = Path(spec.keep.texts)
        yield TrimmedTexts(path, lambda: measure_held_out(checkpoint, kept, path, rows))


def _documents(checkpoint: Checkpoint, vocabulary: Vocabulary, ids: IndexMap, size: int) -> dict[str, Any]:
    """Every document under the new ids; files of a slow tokenizer, which would have the old ones, do not come along."""
    documents = renumbered(checkpoint.documents, ids)
    config = documents.get("config.json", checkpoint.config)
    return {
        **documents,
        "config.json": with_values(config, vocabulary.config_paths, size),
        **dict.fromkeys(_slow(checkpoint)),
    }


def _slow(checkpoint: Checkpoint) -> list[str]:
    return sorted(name for name in {*checkpoint.documents, *checkpoint.carried} if is_slow(name))


def _kept_rows(checkpoint: Checkpoint, vocabulary: Vocabulary, ids: IndexMap) -> Iterator[tuple[str, Gathered]]:
    for item in vocabulary.tensors:
        yield item.name, pick_rows(checkpoint.tensors[item.name], axis=item.axis, rows=ids.kept)


def _padding(trimmed: Checkpoint, vocabulary: Vocabulary, count: int, size: int, context: Context) -> RowMaker:
    """What makes the rows that fill the tables up, the mean of all kept ones."""
    plain = read_tokenizer(trimmed.documents)
    rows = [NewRow.resolve(index, None, Mean(), Mean(), plain) for index in range(count, size)]
    return RowMaker(trimmed, replace(vocabulary, rows=count), count, tuple(rows), (context.seed, context.place))


def _promise(vocabulary: Vocabulary) -> Promise:
    if not vocabulary.has_output:
        return Promise(PromiseClass.BITWISE, "hidden states", DOMAIN)
    return Promise(PromiseClass.BITWISE, "hidden states and logits over the kept ids", DOMAIN, (OTHER_KERNEL,))


def _notes(checkpoint: Checkpoint, vocabulary: Vocabulary, kept: Kept, ids: IndexMap, size: int) -> Iterator[str]:
    yield from vocabulary.notes
    tokenizer = read_tokenizer(checkpoint.documents)
    yield kept_note(kept, len(tokenizer.tokens))
    if spare := vocabulary.rows - tokenizer.size:
        yield f"{plural(spare, 'padding row')} behind the tokenizer's {tokenizer.size:,} ids {'goes' if spare == 1 else 'go'} too"
    if size > ids.result:
        yield f"{plural(size - ids.result, 'mean row')} fill the tables up to {size:,} rows"
    if slow := _slow(checkpoint):
        yield f"{', '.join(map(printable, slow))}: left out, since the ids in it are the old ones; tokenizer.json has the new ones"
    moved: Mapping[int, int] = dict(zip(ids.kept, ids.places, strict=True))
    doubtful = [
        f"{place} is {place.value}" for place in doubtful_places(checkpoint.documents) if _moves(place.value, moved)
    ]
    if doubtful:
        yield f"not known to be ids of tokens, and left as they are: {few(doubtful)}"


def _moves(index: int, moved: Mapping[int, int]) -> bool:
    return moved.get(index, index) != index
