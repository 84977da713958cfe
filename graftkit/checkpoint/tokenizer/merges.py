"""Merges learned by the tokenizers library's own trainer, from words whose pieces count as single characters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain, repeat

from graftkit.checkpoint.tokenizer.words import Word

#: Two runs of old pieces that become one piece.
Merge = tuple[Word, Word]

#: The first of the characters that stand for pieces: 1,048,576 follow, of which none is a space and no normalizer is asked.
FIRST = 0x10000


def learn_merges(words: Mapping[Word, int], count: int, min_frequency: int) -> list[Merge]:
    """The merges that give ``count`` new pieces, or as many as there are, the most frequent pair first.

    The library trains from nothing only. Each piece of ``words`` is one character to it, so that what it learns is what
    comes behind the merges that made the pieces.
    """
    from tokenizers import Tokenizer, models, trainers

    pieces = sorted(set(chain.from_iterable(words)))
    characters = {index: chr(FIRST + place) for place, index in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=len(pieces) + count, min_frequency=min_frequency, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(_spelled(words, characters), trainer)
    indices = {character: index for index, character in characters.items()}
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(_word(left, indices), _word(right, indices)) for left, right in merges]


def _spelled(words: Mapping[Word, int], characters: Mapping[int, str]) -> Iterator[str]:
    for word, times in words.items():
        yield from repeat("".join(characters[index] for index in word), times)


def _word(text: str, indices: Mapping[str, int]) -> Word:
    return tuple(indices[character] for character in text)
