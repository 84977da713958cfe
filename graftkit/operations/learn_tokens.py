"""learn_tokens: pieces learned from texts behind those of the tokenizer's own model, with a row for every new id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import read_document
from graftkit.checkpoint.tokenizer import TokenizerFiles, read_tokenizer
from graftkit.checkpoint.tokenizer.learning import Learned, check_model, count_reads, learn_pieces
from graftkit.checkpoint.tokenizer.notes import slow_notes
from graftkit.checkpoint.tokenizer.piece_files import EDITED, add_pieces
from graftkit.checkpoint.tokenizer.words import Word, count_words
from graftkit.errors import RecipeError, plural, printable
from graftkit.initializers.seeding import seed_of
from graftkit.operations.base import Context, Outcome, VocabularyOutcome
from graftkit.operations.vocabulary.corpus import Corpus
from graftkit.operations.vocabulary.figures import row_figures
from graftkit.operations.vocabulary.growth import GrowthSettings, check_named_ids, grow
from graftkit.operations.vocabulary.new_row import NewRow
from graftkit.operations.vocabulary.splits import Splits, compare_splits
from graftkit.operations.vocabulary.tables import check_output_init, one_vocabulary
from graftkit.recipe import LearnTokens, Mean

#: So many of the most frequent pieces are shown.
SHOWN = 10

#: Why a text can be split at other places, by the tokenizer's model; merges only join.
WHY_MOVED = {
    "WordPiece": "a WordPiece takes the longest piece from the left, and goes on from its end",
    "Unigram": "of two ways to split with one score, that with a new piece wins",
}


def learn_tokens(spec: LearnTokens, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Learn pieces from texts, put them behind the tokenizer's own, and add rows to every table that the vocabulary indexes.

    Raises:
        InputRejected: the tokenizer or the tables cannot be extended, and why.
        RecipeError: the texts cannot be read, or do not give as many pieces.
    """
    vocabulary = one_vocabulary(checkpoint)
    check_output_init(vocabulary, given=spec.output_init is not None)
    tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    check_model(tokenizer)
    corpus = _corpus(spec, context)
    words = count_words(tokenizer, corpus.learning(context.progress))
    learned = learn_pieces(tokenizer, words, spec.size, spec.min_frequency)
    _check_size(spec, learned, corpus)
    documents, ids, entered = add_pieces(checkpoint.documents, _slow_documents(checkpoint), learned.pieces)
    check_named_ids(checkpoint, {}, ids, vocabulary.rows)
    effect = _Effect.measure(tokenizer, read_tokenizer({**checkpoint.documents, **documents}), learned, words, corpus)
    rows = _new_rows(spec, learned, ids, tokenizer, tokenizer.within(vocabulary.rows))
    settings = GrowthSettings(spec.init, spec.output_init, spec.pad_to_multiple_of)
    grown = grow(checkpoint, vocabulary, tokenizer, documents, rows, settings, context)
    outcome = VocabularyOutcome(
        ids,
        frozenset(),
        chat_template_changed=False,
        kl=grown.maker.kl_promise,
        given_rows=grown.given_rows,
        learned=frozenset(ids),
    )
    slow = [name for name in (*checkpoint.documents, *checkpoint.carried) if name not in documents]
    notes = (*vocabulary.notes, *effect.notes(), *entered, *grown.notes, *slow_notes(slow))
    return Outcome(
        grown.checkpoint,
        grown.promise,
        notes,
        grown.correspondence,
        outcome,
        checks=grown.checks,
        prepare=grown.prepare,
        figures=lambda: {**row_figures(grown.maker, tokenizer.token_of), "learned": effect.figures()},
    )


def _corpus(spec: LearnTokens, context: Context) -> Corpus:
    try:
        return Corpus.survey(Path(spec.texts), spec.held_out, seed_of(context.seed, context.place, "held out"))
    except RecipeError as error:
        raise RecipeError(str(error), field="texts") from error


def _check_size(spec: LearnTokens, learned: Learned, corpus: Corpus) -> None:
    count, texts = len(learned.pieces.listed), corpus.count - len(corpus.held_out)
    if count < spec.size:
        give = f"give size: {count} or less, or " if count else "give "
        lower = " or a lower min_frequency" if spec.min_frequency > 1 else ""
        raise RecipeError(
            f"{plural(texts, 'text')} {'gives' if texts == 1 else 'give'} {plural(count, 'piece')} with min_frequency:"
            f" {spec.min_frequency}, not {spec.size:,}; {give}more texts{lower}",
            field="size",
        )


def _slow_documents(checkpoint: Checkpoint) -> dict[str, Any]:
    """The files of a slow tokenizer that can be edited, as an earlier operation left them or as they lie there."""
    known = {name: checkpoint.documents[name] for name in EDITED if name in checkpoint.documents}
    folders = {
        name: checkpoint.folder_of(name) or checkpoint.directory for name in EDITED if name in checkpoint.carried
    }
    lying = {name: read_document(folder, name) for name, folder in folders.items()}
    return {**lying, **known}


def _new_rows(
    spec: LearnTokens, learned: Learned, ids: Mapping[str, int], tokenizer: TokenizerFiles, within: TokenizerFiles
) -> Iterator[NewRow]:
    for piece in learned.pieces.listed:
        text = tokenizer.decode(piece.parts)
        yield NewRow.of_piece(ids[piece.content], piece, text, spec.init, spec.output_init or Mean(), within)


@dataclass(frozen=True, slots=True)
class _Effect:
    """What learned pieces do: how often each stands in the texts that it was learned from, and how held-out texts are split."""

    learned: Learned
    uses: Mapping[str, int]
    texts: int
    held_out: Splits
    model_type: str

    @classmethod
    def measure(
        cls, old: TokenizerFiles, new: TokenizerFiles, learned: Learned, words: Mapping[Word, int], corpus: Corpus
    ) -> _Effect:
        """Read the words by the new tokenizer, and the held-out texts by both."""
        ids = learned.pieces.ids(old)
        parts = {ids[piece.content]: piece.parts for piece in learned.pieces.listed}
        splits = compare_splits(old, new, parts, corpus.measuring())
        uses = count_reads(old, new, ids, words)
        return cls(learned, uses, corpus.count - len(corpus.held_out), splits, old.model_type)

    @property
    def most_frequent(self) -> dict[str, int]:
        """The pieces that stand most often in the texts, with their numbers."""
        ordered = sorted(self.uses.items(), key=lambda item: -item[1])
        return dict(ordered[:SHOWN])

    def notes(self) -> Iterator[str]:
        """What the plan says of it."""
        yield f"{plural(len(self.uses), 'piece')} learned from {plural(self.texts, 'text')}{self._left_out()}"
        shown = ", ".join(f"{printable(content)!r} ({count:,})" for content, count in self.most_frequent.items())
        yield f"most frequent in them: {shown}"
        if steps := sum(not count for count in self.uses.values()):
            yield f"{plural(steps, 'piece')} only on the way to longer ones: not once in these texts"
        splits = self.held_out
        before, after = (count / splits.bytes for count in (splits.before, splits.after))
        yield (
            f"tokens per byte on {plural(splits.texts, 'held-out text')} ({splits.bytes:,} bytes): {before:.4f} before,"
            f" {after:.4f} after"
        )
        if splits.moved:
            yield (
                f"{splits.moved} of {plural(splits.texts, 'held-out text')} split at other places too, not only with pieces joined:"
                f" {WHY_MOVED[self.model_type]}"
            )

    def _left_out(self) -> str:
        reasons = ((self.learned.existing, "exist already"), (self.learned.unread, "would not be read"))
        found = ", ".join(f"{count} {why}" for count, why in reasons if count)
        return f"; left out: {found}" if found else ""

    def figures(self) -> dict[str, Any]:
        """What the report holds of it."""
        return {
            "pieces": len(self.uses),
            "existing": self.learned.existing,
            "unread": self.learned.unread,
            "unused": sum(not count for count in self.uses.values()),
            "most_frequent": self.most_frequent,
            "learning_texts": self.texts,
            "held_out": self.held_out.figures(),
        }
