"""What a folder has in common with the report of the run that wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.verification.checks import Row
from graftkit.verification.promises import Promise, PromiseClass, Scope


@dataclass(frozen=True, slots=True)
class Accounted:
    """How a folder agrees with the report beside it: sentences for what does not, notes, and the tensors that do.

    ``promise``, ``tensors``, ``values`` and ``correspondence`` are the report's, and empty where anything does not agree: what was
    promised, the names of the tensors that operations changed, the documents with the places in them, and which index is which.
    """

    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()
    written: frozenset[str] = frozenset()
    figure: str = ""
    promise: Mapping[str, Any] = field(default_factory=dict)
    tensors: frozenset[str] = frozenset()
    values: frozenset[tuple[str, str]] = frozenset()
    correspondence: Correspondence = IDENTITY
    name: str = "report"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        yield Row(self.name, "failed" if self.failures else "passed", self.figure)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return dataclasses.asdict(self)

    @property
    def promised(self) -> Promise | None:
        """The promise, None where it cannot be relied on."""
        if not self.promise:
            return None
        found = self.promise
        strength = PromiseClass[str(found["strength"]).upper()]
        return Promise(strength, str(found["observable"]), str(found["domain"]), tuple(found["assumptions"]))

    @property
    def scope(self) -> Scope:
        """What of the outputs the promise speaks of."""
        return Scope(self.promise.get("scope", Scope.EVERYTHING.value))
