"""Rows that were fitted to texts, as they were written: held-out texts give states near those behind the old tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.errors import plural
from graftkit.running.aligned import relative_distance, states_of_ids
from graftkit.running.forward import load, release, undisturbed
from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.place import folder_of
from graftkit.verification.checks import Report, Row

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class Expected:
    """What stood behind ``places`` of a text, split into ``ids`` by the new tokenizer, when the old one split it: ``states``.

    *Shape:* ``(len(places), d)``.
    """

    text: str
    ids: tuple[int, ...]
    places: tuple[int, ...]
    states: Tensor


@dataclass(frozen=True, slots=True)
class Fitted:
    """What held-out texts are to give, and the distance of what they gave from there with the rows that the fit began with."""

    expected: Sequence[Expected]
    start: float


@dataclass(frozen=True, slots=True)
class DistilledReport(Report):
    """The distance of hidden states from those behind old tokens, as a share of their size, and the same with subword means."""

    snippets: int
    places: int
    start: float
    distance: float
    failures: tuple[str, ...]
    name: str = "distilled"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        verdict = "failed" if self.failures else "measured"
        figure = (
            f"{self.distance:.4f} of their size from those behind old tokens, {self.start:.4f} with subword means; at"
            f" {plural(self.places, 'place')} of {plural(self.snippets, 'held-out snippet')}"
        )
        yield Row("hidden states behind new tokens", verdict, figure)


@dataclass(frozen=True, slots=True)
class DistilledCheck:
    """Runs what was written on held-out texts; it fails where states are no nearer than from the rows that the fit began with."""

    fitted: Callable[[], Fitted]
    name: str = "distilled"

    def applies(self, subject: Subject) -> bool:
        """Where models may be loaded, and no later operation changed outputs or ids."""
        return subject.runs and subject.later_scope.same_outputs and subject.later.ids is None

    def run(self, subject: Subject) -> DistilledReport:
        """Load what was written as a user would, in float32, with the tokenizer beside it."""
        fitted = self.fitted()
        tokenizer = LoadedTokenizer.of(folder_of(subject.result))
        texts = [one.text for one in fitted.expected]
        split = [tuple(ids) for ids in tokenizer.encode(texts, framed=True)]
        failures = [
            f"distilled: the text {one.text[:40]!r} is split otherwise than when rows were fitted to it"
            for one, ids in zip(fitted.expected, split, strict=True)
            if ids != one.ids
        ]
        with undisturbed():
            model = load(subject.result, lent=True, dtype="float32").model
            pairs = [(states_of_ids(model, one.ids)[list(one.places)], one.states) for one in fitted.expected]
            release(model)
        distance = relative_distance(pairs)
        if not distance < fitted.start:
            failures.append(
                f"distilled: hidden states behind new tokens are {distance:.4f} of their size away from those behind old ones,"
                f" and would be {fitted.start:.4f} with subword means"
            )
        return DistilledReport(
            snippets=len(texts),
            places=sum(len(one.places) for one in fitted.expected),
            start=fitted.start,
            distance=distance,
            failures=tuple(failures),
        )
