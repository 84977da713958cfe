"""Does old text split as it did? Where a new token changes that, say where, and decide whether it may."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from graftkit.errors import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from graftkit.running.loaded_tokenizer import LoadedTokenizer

#: Texts are derived from so many new tokens of each kind; more would only repeat what they show.
MAX_DERIVED = 500
#: So many kept tokens are tried alone, where others are gone.
MAX_ALONE = 5_000
#: So many differences are shown for one token, and of all together.
MAX_SHOWN = 4
MAX_SHOWN_IN_ALL = 100
#: So many longer words of the old vocabulary are tried for one token.
_MAX_WORDS = 4
_MARKS = re.compile(r"^(?:Ġ|▁|##)|</w>$")


@dataclass(frozen=True, slots=True)
class SplitDifference:
    """A text that splits in another way than before, from the first piece that differs to the last.

    Attributes:
        probe: the whole text.
        before: the pieces that stood there.
        after: the pieces that stand there now.
        token: the new token that did it, or None if none of them did.

    """

    probe: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    token: str | None

    def __str__(self) -> str:
        probe = self.probe if len(self.probe) <= 60 else f"{self.probe[:57]}..."
        old, now = (_joined(pieces) for pieces in (self.before, self.after))
        cause = "" if self.token is None else f", because of {self.token!r}"
        return printable(f"in {probe!r}, {old} became {now}{cause}")


class Splits(NamedTuple):
    """What became of texts: failures, some of the differences that new tokens explain, how many these are, and those of lost tokens."""

    failures: list[str]
    differences: tuple[SplitDifference, ...]
    explained: int
    without: int


def _joined(pieces: tuple[str, ...]) -> str:
    return "|".join(pieces[:12]) + ("|..." if len(pieces) > 12 else "")


def derived_texts(before: LoadedTokenizer, new: Mapping[str, int], special: Collection[str]) -> list[str]:
    """Return texts near the new tokens: longer words around plain ones, and what only looks like a special one."""
    plain = list(islice((content for content in new if content not in special), MAX_DERIVED))
    texts: list[str] = []
    vocabulary = "\n".join(_words(before)) if plain else ""
    for content in plain:
        texts += [*_longer_words(content, vocabulary), f"{content}s", f"un{content}able", f"the {content} of"]
        texts += [content.upper(), content.lower(), content.capitalize()]
    for content in islice((content for content in new if content in special), MAX_DERIVED):
        inner = content.strip("<|>[]{}/_ ")
        texts += [inner, f"{inner}s", f"a{inner}b", inner.replace("_", " "), content[:-1], content[1:]]
        texts += [content.upper(), content.lower(), f"{content[:1]} {content[1:]}"]
    return [text for text in dict.fromkeys(texts) if text and text not in new]


def texts_of_kept(before: LoadedTokenizer) -> list[str]:
    """Return texts that are made of tokens which stay where others go: each alone, and several in a row; none where none goes."""
    if before.moved is None:
        return []
    chance = random.Random(0)  # noqa: S311 - an order, no secret
    ids = list(before.ids.values())
    alone = chance.sample(ids, min(len(ids), MAX_ALONE))
    rows = [chance.choices(ids, k=8) for _ in range(MAX_DERIVED)]
    return [text for row in (*([index] for index in alone), *rows) if (text := before.decode(row))]


def compare_splits(
    before: LoadedTokenizer,
    after: LoadedTokenizer,
    texts: Sequence[str],
    new: Mapping[str, int],
    special: Collection[str],
) -> Splits:
    """Compare how ``texts`` split.

    Renamed tokens stand in the second's texts under their names. It is a failure when no new token explains a difference and the
    text holds no renamed one, or when a special one does in text that does not hold it.
    """
    failures: list[str] = []
    differences: list[SplitDifference] = []
    without: int = 0
    shown: Counter[str | None] = Counter()
    contents = {index: content for content, index in new.items()}
    now_texts = [before.text_under_names(text) for text in texts]
    for text, under_names, old, now in zip(
        texts, now_texts, before.encode(texts), after.encode(now_texts), strict=True
    ):
        if old == now:
            continue
        if before.loses(old):
            without += 1
            continue
        responsible = list(dict.fromkeys(contents[index] for index in now if index in contents))
        wrong = [content for content in responsible if content in special and content not in under_names]
        responsible += [new for name, new in before.names.items() if name in under_names]
        difference = _difference((before, after), (old, now), text, wrong or responsible)
        if wrong:
            failures.append(f"the special token stands where it is not written: {difference}")
        elif not responsible:
            failures.append(f"old text splits in another way, and no new token explains it: {difference}")
        else:
            shown[difference.token] += 1
            if shown[difference.token] <= MAX_SHOWN and len(differences) < MAX_SHOWN_IN_ALL:
                differences.append(difference)
    return Splits(failures, tuple(differences), shown.total(), without)


def _difference(
    loaded: tuple[LoadedTokenizer, LoadedTokenizer], ids: tuple[list[int], list[int]], text: str, tokens: list[str]
) -> SplitDifference:
    old, now = ids
    head = next((i for i, (a, b) in enumerate(zip(old, now, strict=False)) if a != b), min(len(old), len(now)))
    tail = 0
    while tail < min(len(old), len(now)) - head and old[-1 - tail] == now[-1 - tail]:
        tail += 1
    before, after = (side.pieces(pieces[head : len(pieces) - tail]) for side, pieces in zip(loaded, ids, strict=True))
    return SplitDifference(text, before, after, tokens[0] if tokens else None)


def _words(before: LoadedTokenizer) -> Iterator[str]:
    for token in before.ids:
        word = _MARKS.sub("", token)
        if len(word) > 3 and word.isascii() and word.isalpha():
            yield word


def _longer_words(content: str, vocabulary: str) -> Iterator[str]:
    """Yield words of the old vocabulary, one a line, that hold ``content``, such as ``category`` for ``cat``."""
    found, begin = 0, vocabulary.find(content)
    while begin != -1 and found < _MAX_WORDS:
        start, end = vocabulary.rfind("\n", 0, begin) + 1, vocabulary.find("\n", begin)
        end = len(vocabulary) if end == -1 else end
        if end - start > len(content):
            found += 1
            yield vocabulary[start:end]
        begin = vocabulary.find(content, end)
