"""What learned pieces change in how texts are split: tokens per byte, and whether only borders inside old splits were closed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.checkpoint.tokenizer import TokenizerFiles
from graftkit.checkpoint.tokenizer.words import Word


@dataclass(frozen=True, slots=True)
class Splits:
    """How texts are split by two tokenizers.

    Attributes:
        texts: how many there are.
        bytes: their length in UTF-8.
        before: tokens by the old tokenizer.
        after: tokens by the new one.
        changed: texts that it splits in another way.
        moved: those of them in which not only pieces of the old split were joined.

    """

    texts: int
    bytes: int
    before: int
    after: int
    changed: int
    moved: int

    def figures(self) -> dict[str, Any]:
        """Everything, with tokens per byte."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "tokens_per_byte_before": self.before / self.bytes,
            "tokens_per_byte_after": self.after / self.bytes,
        }


def compare_splits(old: TokenizerFiles, new: TokenizerFiles, parts: Mapping[int, Word], texts: Iterable[str]) -> Splits:
    """Split ``texts`` by both; ``parts`` are the old ids that each new one stands for."""
    counts: Counter[str] = Counter()
    for text in texts:
        before, after = old.encode(text), new.encode(text)
        joined = [part for index in after for part in parts.get(index, (index,))]
        counts.update(
            texts=1, bytes=len(text.encode()), before=len(before), after=len(after),
            changed=before != after, moved=joined != before,
        )  # fmt: skip
    return Splits(**{name: counts[name] for name in Splits.__slots__})


def count_ids(tokenizer: TokenizerFiles, texts: Iterable[str]) -> Counter[int]:
    """How often each id stands in ``texts``."""
    found: Counter[int] = Counter()
    for ids, _ in tokenizer.encode_words(texts):
        found.update(ids)
    return found
