"""The bound on the next-token distribution that is promised where new ids are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class KLPromise:
    """The bound on KL(p_old ‖ p_new) over the kept ids, for k fresh rows.

    ``mean``: every fresh output row is the mean of ``rows_averaged`` live rows, so by Jensen KL <= log(1 + k/m), whatever
    the hidden state. ``averaged`` are the ids of those rows, None for all live ids that stay. ``convex``: every fresh row is a
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
