"""Texts as the tokenizer splits them: runs of pieces that a longer piece may stand for, counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftkit.checkpoint.tokenizer.files import TokenizerFiles

#: How the piece of a byte is spelled where characters without a piece are written as bytes.
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
#: What SentencePiece writes for a space: no piece joins a word to what stands before it.
WORD = "▁"

#: Ids of pieces that stand side by side in one word.
Word = tuple[int, ...]


def count_words(tokenizer: TokenizerFiles, texts: Iterable[str]) -> Counter[Word]:
    """Count the runs of pieces between borders: those of the pre-tokenizer, before ``▁``, and around pieces that stay alone.

    Alone stay added tokens, the unknown token, bytes, and pieces with a literal white space.
    """
    alone, beginning = _alone(tokenizer), _beginning(tokenizer)
    found: Counter[Word] = Counter()
    for ids, words in tokenizer.encode_words(texts):
        found.update(_runs(ids, words, alone, beginning))
    return found


def _runs(ids: list[int], words: list[int | None], alone: frozenset[int], beginning: frozenset[int]) -> Iterator[Word]:
    run: list[int] = []
    last: int | None = None
    for index, word in zip(ids, words, strict=True):
        if run and (word != last or index in alone or index in beginning):
            yield tuple(run)
            run = []
        if index not in alone:
            run.append(index)
        last = word
    if run:
        yield tuple(run)


def _alone(tokenizer: TokenizerFiles) -> frozenset[int]:
    model = tokenizer.document["model"]
    unknown = model.get("unk_id"), tokenizer.ids.get(model.get("unk_token") or "")
    added = {entry.index for entry in tokenizer.added}
    odd = {index for token, index in tokenizer.ids.items() if BYTE.fullmatch(token) or any(map(str.isspace, token))}
    return frozenset(added | odd | {index for index in unknown if index is not None})


def _beginning(tokenizer: TokenizerFiles) -> frozenset[int]:
    return frozenset(index for token, index in tokenizer.ids.items() if token.startswith(WORD))
