"""Which pieces a tokenizer's model needs beside those that are to stay.

What is claimed of the rest: text that was split into pieces that stay, and nothing else, is split into the same ones. A longest
match (WordPiece, WordLevel) and a best path (Unigram) stay what they are where others go. BPE needs what each piece is made of.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from graftkit.checkpoint.tokenizer.files import TokenizerFiles
from graftkit.checkpoint.tokenizer.vocabulary import vocabulary_of

#: How the piece of a byte is spelled.
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BYTE_OR_LETTER = re.compile(rf"{BYTE.pattern}|.", re.DOTALL)

Pair = tuple[str, str]


def closed(files: TokenizerFiles, wanted: Collection[int]) -> frozenset[int]:
    """The ids ``wanted``, with every further one of the model's vocabulary that they cannot do without."""
    model, own = files.document["model"], vocabulary_of(files.document)[1]
    needed = {*_unknown(files), *(bytes_of(files) if model.get("byte_fallback") else ())}
    if "merges" in model:
        pieces = (token for index in wanted if (token := files.tokens.get(index)) in own and token is not None)
        needed |= symbols(model) | Merging(model).parts(pieces)
    elif isinstance(model["vocab"], list) and model["vocab"]:
        # an unknown character costs a fixed sum more than the least likely piece: without that piece it would cost less
        needed.add(min(model["vocab"], key=lambda item: float(item[1]))[0])
    return frozenset(wanted) | {files.ids[piece] for piece in needed}


def symbols(model: Mapping[str, Any]) -> set[str]:
    """The pieces of a BPE vocabulary that every text begins as: single characters, which in a byte-level one stand for bytes."""
    prefix, suffix = _affixes(model)
    return {piece for piece in model["vocab"] if len(piece.removeprefix(prefix).removesuffix(suffix)) < 2}


def bytes_of(files: TokenizerFiles) -> set[str]:
    """The pieces of the bytes, into which a character without a piece of its own is split."""
    return {token for token in files.ids if BYTE.fullmatch(token)}


def merges_of(model: Mapping[str, Any]) -> Iterator[tuple[Pair, str]]:
    """The two sides of each merge of a BPE model, in order, and the piece that it makes of them."""
    prefix, _ = _affixes(model)
    for merge in model["merges"] or ():
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield (left, right), left + right.removeprefix(prefix)


def _affixes(model: Mapping[str, Any]) -> Pair:
    """What stands before a piece that goes on with a word, and behind one that ends it."""
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def _unknown(files: TokenizerFiles) -> Iterator[str]:
    """The token that stands for what the vocabulary has no piece for."""
    model = files.document["model"]
    names = (model.get("unk_token"), files.special.get("unk_token"), files.tokens.get(model.get("unk_id")))
    yield from (name for name in names if name is not None and name in files.ids)


class Merging:
    """How the merges of a BPE model make a piece of its symbols.

    Merges apply by rank, and of one rank the leftmost first. None crosses the ends of a piece of the result, so that inside of it
    they are what they are for the piece alone. With these and their order kept, none can come before one of them that did not before.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._prefix, self._suffix = _affixes(model)
        self._bytes = bool(model.get("byte_fallback"))
        self._made = {pair: (rank, piece) for rank, (pair, piece) in enumerate(merges_of(model))}

    def parts(self, pieces: Iterable[str]) -> set[str]:
        """Every piece that one of ``pieces`` is made of on the way, and the pieces themselves."""
        found: set[str] = set()
        for piece in pieces:
            found.add(piece)
            for word in self._words(piece):
                found |= self._steps(piece, word)
        return found

    def _steps(self, piece: str, word: list[str]) -> set[str]:
        """What ``piece`` is made of, beginning as ``word``; empty where that becomes something else."""
        seen = set(word)
        while len(word) > 1:
            ranked = [(self._made[pair], place) for place, pair in enumerate(pairwise(word)) if pair in self._made]
            if not ranked:
                return set()
            (_, made), place = min(ranked, key=lambda item: (item[0][0], item[1]))
            seen.add(made)
            word[place : place + 2] = [made]
        return seen if word == [piece] else set()

    def _words(self, piece: str) -> Iterator[list[str]]:
        """The symbols of a piece; several where what stands before or behind it may be letters of the text too."""
        for prefix in {"", self._prefix} if piece.startswith(self._prefix) else {""}:
            for suffix in {"", self._suffix} if piece.endswith(self._suffix) else {""}:
                inner = piece[len(prefix) : len(piece) - len(suffix)]
                for letters in [list(inner), _BYTE_OR_LETTER.findall(inner)][: 1 + (self._bytes and "<" in inner)]:
                    word = [(self._prefix if place else prefix) + letter for place, letter in enumerate(letters)]
                    yield [*word[:-1], word[-1] + suffix] if word else [piece]
