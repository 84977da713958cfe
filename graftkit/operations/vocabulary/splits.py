"""What learned pieces change in how texts are split: tokens per byte, and whether only borders inside old splits were closed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import tee
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
            **asdict(self),
            "tokens_per_byte_before": self.before / self.bytes,
            "tokens_per_byte_after": self.after / self.bytes,
        }


def compare_splits(old: TokenizerFiles, new: TokenizerFiles, parts: Mapping[int, Word], texts: Iterable[str]) -> Splits:
    """Split ``texts`` by both; ``parts`` are the old ids that each new one stands for."""
    counts: Counter[str] = Counter()
    read, *split = tee(texts, 3)
    for text, (before, _), (after, _) in zip(read, old.encode_words(split[0]), new.encode_words(split[1]), strict=True):
        joined = [part for index in after for part in parts.get(index, (index,))]
        counts.update(
            texts=1, bytes=len(text.encode()), before=len(before), after=len(after),
            changed=before != after, moved=joined != before,
        )  # fmt: skip
    return Splits(**{field.name: counts[field.name] for field in fields(Splits)})
