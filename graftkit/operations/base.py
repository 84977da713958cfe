"""What an operation is: one function from a checkpoint to an outcome. It computes no weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.verify.promises import Promise
from graftkit.verify.vocabulary import KLPromise, VocabularyChange


@dataclass(frozen=True, slots=True)
class VocabularyOutcome:
    """How an operation changed the vocabulary: rows, new ids by content, and the bound on the next-token distribution.

    ``kl`` is called after the rows were computed, since the number of averaged rows is only known then.
    """

    change: VocabularyChange
    new_tokens: Mapping[str, int]
    special: frozenset[str]
    chat_template_changed: bool
    kl: Callable[[], KLPromise | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The new checkpoint, the promise, and what the plan and the report say about the operation.

    ``notes`` are sentences for the plan; ``figures`` is called after writing and returns what was measured on the way.
    """

    checkpoint: Checkpoint
    promise: Promise
    notes: tuple[str, ...] = ()
    vocabulary: VocabularyOutcome | None = None
    figures: Callable[[], Mapping[str, Any]] = field(default=dict)


class Operation(Protocol):
    """The contract of every operation. ``place`` is its index in the recipe; sampling is seeded by seed and place."""

    def __call__(self, spec: Any, checkpoint: Checkpoint, *, seed: int, place: int) -> Outcome:
        """Return the outcome of ``spec`` on ``checkpoint``, or raise InputRejected or RecipeError."""
