"""How a vocabulary changed, and which bound on the next-token distribution was promised with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class VocabularyChange:
    """Rows of the source's and the result's table; ids ``0..live-1`` are the old tokenizer's; ``fresh`` rows are new."""

    old_rows: int
    new_rows: int
    live: int
    fresh: tuple[int, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """The ids whose rows must be what they were."""
        return tuple(sorted(set(range(self.old_rows)) - set(self.fresh)))

    def then(self, later: VocabularyChange) -> VocabularyChange:
        """One change that stands for both, ``later`` coming behind."""
        fresh = sorted({*self.fresh, *later.fresh})
        return VocabularyChange(self.old_rows, later.new_rows, self.live, tuple(fresh))


def live_ids(change: VocabularyChange | None) -> int | None:
    """How many ids the old tokenizer has; None where no change says so, and every row of the table counts as one."""
    return None if change is None else change.live


@dataclass(frozen=True, slots=True)
class KLPromise:
    """The bound on KL(p_old ‖ p_new) over the kept ids, for k fresh rows.

    ``mean``: every fresh output row is the mean of ``rows_averaged`` live rows, so by Jensen KL <= log(1 + k/m), whatever
    the hidden state. ``averaged`` are the ids of those rows, None for all live ids. ``convex``: every fresh row is a
    convex combination of old rows, so KL <= log(1 + k · max p). ``likeliest``: how the fresh rows were made is not known, and
    none of them is to be likelier than the likeliest old id is anywhere, so that the largest p is taken over all positions.
    Each time exp of the rounding of the stored rows.
    """

    kind: Literal["mean", "convex", "likeliest"]
    rows_averaged: int = 0
    averaged: tuple[int, ...] | None = None


def weaker_kl(first: KLPromise | None, second: KLPromise | None) -> KLPromise | None:
    """The bound that all rows of two changes keep: a mean of rows that are means themselves is a convex combination of old ones."""
    return None if first is None or second is None else KLPromise("convex")
