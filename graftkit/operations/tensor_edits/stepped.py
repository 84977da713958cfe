"""What every step of edit_tensors is given and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step stands: what it samples is seeded by ``seed``, and ``source`` is the checkpoint as the recipe names it."""

    seed: tuple[int, ...]
    source: Checkpoint


@dataclass(frozen=True, slots=True)
class Stepped:
    """The checkpoint after a step.

    Attributes:
        checkpoint: with the tensors as they are then; the identical object where the step changes none.
        notes: sentences for the plan.
        check: called before anything is written, for what only the values of tensors show.
        sampled: the tensors whose values the step sampled.
    """

    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()
    check: Callable[[], None] | None = None
    sampled: Mapping[str, LazyTensor] = field(default_factory=dict)


class StepFunction(Protocol):
    """The contract of every step."""

    def __call__(self, step: Any, checkpoint: Checkpoint, place: Place, /) -> Stepped:
        """Return what ``step`` makes of ``checkpoint``, or raise RecipeError with the field below the step's own."""
