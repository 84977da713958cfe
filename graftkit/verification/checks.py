"""The contract of every check: where it applies, and what it returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from graftkit.verification.subject import Subject


class Row(NamedTuple):
    """One line of a table of what was checked: the check, its result in a word or two, and the figure behind it."""

    check: str
    result: str
    figure: str


class Finding(Protocol):
    """What a check found. ``name`` is its key in the report; ``failures`` is empty when it passed."""

    @property
    def name(self) -> str: ...
    @property
    def failures(self) -> tuple[str, ...]: ...
    def rows(self) -> Iterator[Row]:
        """Yield the lines that a table shows of it."""

    def to_json(self) -> dict[str, Any]:
        """Return everything that was measured as JSON values."""


class Check(Protocol):
    """One way to look at a subject. ``name`` is that of its finding."""

    @property
    def name(self) -> str: ...
    def applies(self, subject: Subject) -> bool:
        """Whether there is something for it to look at."""

    def run(self, subject: Subject) -> Finding:
        """Return what it found."""


class LoadsModels:
    """What checks that load models have in common."""

    __slots__ = ()

    def applies(self, subject: Subject) -> bool:
        """Where models may be loaded."""
        return subject.runs


class ComparesFiles:
    """What checks that compare files, and outputs too where models may be loaded, have in common."""

    __slots__ = ()

    def applies(self, subject: Subject) -> bool:
        """Always: where no model is run, their findings say so."""
        del subject
        return True


class Report:
    """What findings that are dataclasses have in common: their JSON, with the properties that ``derived`` names."""

    __slots__ = ()
    derived: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured as JSON values; what is not finite is a string."""
        found: dict[str, Any] = finite(json_of(self))
        return found


def json_of(value: Any) -> Any:
    """JSON values of a dataclass and of whatever it holds: its fields and, at every level, the properties that it derives."""
    if dataclasses.is_dataclass(value):
        names = (*(field.name for field in dataclasses.fields(value)), *getattr(value, "derived", ()))
        return {name: json_of(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: json_of(item) for key, item in value.items()}
    return [json_of(item) for item in value] if isinstance(value, tuple | list) else value


@dataclass(frozen=True, slots=True)
class Sentences(Report):
    """What a check found that measures nothing: a sentence for each thing that is wrong."""

    name: str
    failures: tuple[str, ...]

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        yield Row(self.name, "failed" if self.failures else "passed", "")


Given = TypeVar("Given")


@dataclass(frozen=True, slots=True)
class SentencesCheck(Generic[Given]):
    """A check that measures nothing: ``find`` yields what is wrong with what is ``given`` of a subject, where there is that."""

    name: str
    given: Callable[[Subject], Given | None]
    find: Callable[[Given], Iterable[str]]

    def applies(self, subject: Subject) -> bool:
        """Where it is given."""
        return self.given(subject) is not None

    def run(self, subject: Subject) -> Sentences:
        """Collect the sentences."""
        given = self.given(subject)
        return Sentences(self.name, () if given is None else tuple(self.find(given)))


@dataclass(frozen=True, slots=True)
class LeftOut(Report):
    """Checks that were asked for and not run, with the reason; it never fails."""

    checks: tuple[str, ...]
    reason: str
    name: str = "left_out"
    failures: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        for check in self.checks:
            yield Row(check, "not run", self.reason)


Kind = TypeVar("Kind")


def find_kind(findings: Iterable[object], kind: type[Kind]) -> Kind | None:
    """The first of these findings that is of one kind; None where there is none."""
    return next((finding for finding in findings if isinstance(finding, kind)), None)


def finite(value: Any) -> Any:
    """JSON values of ``value``: a float that is not finite becomes a string, tuples and, sorted, sets become lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    value = sorted(value) if isinstance(value, set | frozenset) else value
    return [finite(item) for item in value] if isinstance(value, tuple | list) else value
