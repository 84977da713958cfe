"""Pieces put behind those of a tokenizer's own model in tokenizer.json; they are no added tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.files import TokenizerFiles

if TYPE_CHECKING:
    from graftkit.checkpoint.tokenizer.words import Word

#: The unit roundoff of float32, in which SentencePiece stores and adds scores.
FLOAT32 = 2.0**-24


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece to add: how the vocabulary spells it, and the old ids in whose place it comes."""

    content: str
    parts: Word


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces in the order of their ids, and the merges by which BPE makes them, in the order of their ranks."""

    listed: tuple[Piece, ...] = ()
    merges: tuple[tuple[str, str], ...] = ()

    def ids(self, files: TokenizerFiles) -> dict[str, int]:
        """The id of each, behind all that ``files`` has."""
        return {piece.content: files.size + place for place, piece in enumerate(self.listed)}


def with_pieces(files: TokenizerFiles, pieces: Pieces) -> dict[str, Any]:
    """The value of tokenizer.json with ``pieces`` in its model.

    Added tokens that the vocabulary lacks are entered under their ids: the tokenizers library numbers those that it does not
    find there behind all that it does.
    """
    model = files.document["model"]
    changes: dict[str, Any] = {
        "vocab": _listed(files, pieces) if isinstance(model["vocab"], list) else mapped(files, pieces)
    }
    if "merges" in model:
        old = model["merges"] or []
        as_text = bool(old) and isinstance(old[0], str)
        changes["merges"] = [*old, *(" ".join(merge) if as_text else list(merge) for merge in pieces.merges)]
    return {**files.document, "model": {**model, **changes}}


def entered(files: TokenizerFiles) -> dict[str, int]:
    """The added tokens that the model's own vocabulary gets an entry for, by id."""
    vocab = files.document["model"]["vocab"]
    known = {token for token, _ in vocab} if isinstance(vocab, list) else vocab
    return {e.content: e.index for e in sorted(files.added, key=lambda e: e.index) if e.content not in known}


def mapped(files: TokenizerFiles, pieces: Pieces) -> dict[str, int]:
    """The id of each piece of a vocabulary that is a mapping."""
    return {**files.document["model"]["vocab"], **entered(files), **pieces.ids(files)}


def gain(scores: Sequence[float]) -> float:
    """What a piece of a Unigram model gets for each border that it closes: one rounding of the largest score in float32."""
    return max(map(abs, scores), default=0.0) * FLOAT32


def _listed(files: TokenizerFiles, pieces: Pieces) -> list[list[Any]]:
    """Pairs of piece and score. A piece wins over its parts by one rounding of float32 for each border that it closes.

    So the best way to split a text stays the best, with as many of its borders closed as pieces can close. A score cannot be
    so low that an added token is not read where its characters are unknown; it is lower than those of known ones.
    """
    vocab = files.document["model"]["vocab"]
    added = {entry.content for entry in files.added}
    closing = gain([score for content, score in vocab if content not in added])
    scores = [
        sum(vocab[index][1] for index in piece.parts) + (len(piece.parts) - 1) * closing for piece in pieces.listed
    ]
    lowest = min([0.0, *scores, *(score for _, score in vocab)])
    late = [[content, (len(content) + 1) * lowest] for content in entered(files)]
    return [*vocab, *late, *([piece.content, score] for piece, score in zip(pieces.listed, scores, strict=True))]
