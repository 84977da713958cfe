"""Texts to learn from: a seeded share of them is held out, to measure on what was learned from the others."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graftkit.checkpoint.examples import read_texts
from graftkit.errors import RecipeError, printable
from graftkit.initializers.seeding import seed_of
from graftkit.verification.subject import Progress

#: Characters of all texts together, at most: they are split at about a million characters a second.
MOST = 1 << 28
#: Progress is told after so many texts.
TOLD_EVERY = 256


@dataclass(frozen=True, slots=True)
class Corpus:
    """A file of ``count`` texts; ``held_out`` are the places in it of those that nothing is learned from."""

    path: Path
    count: int
    held_out: frozenset[int]

    @classmethod
    def survey(cls, path: Path, share: float, seed: int) -> Corpus:
        """Count the texts and draw the ``share`` of them that is held out, at least one.

        Raises:
            RecipeError: the file cannot be read, or holds fewer than two texts or too much of them.
        """
        count = characters = 0
        for text in read_texts(path):
            count, characters = count + 1, characters + len(text)
            if characters > MOST:
                raise RecipeError(
                    f"{printable(path)}: holds more than {MOST:,} characters, the most of all texts; give a sample"
                )
        if count < 2:
            holds = "holds one text" if count else "holds no text"
            raise RecipeError(f"{printable(path)}: {holds}; two are needed: one to learn from and one to measure on")
        held_out = min(max(round(share * count), 1), count - 1)
        return cls(path, count, frozenset(heapq.nsmallest(held_out, range(count), lambda place: seed_of(seed, place))))

    def learning(self, progress: Progress | None = None) -> Iterator[str]:
        """The texts to learn from; ``progress`` is told the share of the file that was read."""
        for place, text in enumerate(read_texts(self.path)):
            if progress and place % TOLD_EVERY == 0:
                progress("learn from texts", place / self.count)
            if place not in self.held_out:
                yield text
        if progress:
            progress("learn from texts", 1.0)

    def measuring(self) -> Iterator[str]:
        """The texts to measure on."""
        return (text for place, text in enumerate(read_texts(self.path)) if place in self.held_out)
