"""A drafted recipe as a value: operations with their fields, each with the comments that stand above it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: its fields in order, and by field (or ``op``) the sentences of the comment above it."""

    op: str
    fields: Mapping[str, Any]
    comments: Mapping[str, str]

    def mapping(self) -> dict[str, Any]:
        """The operation as a recipe holds it."""
        return {"op": self.op, **self.fields}


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe of one kind for one model; ``title`` says in a sentence what it does."""

    title: str
    steps: tuple[Step, ...]
