"""The bench: one copy at a time is changed and looked at, and what the checks saw is held against what they had to see."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from graftkit.selftest.fault import LOADING, Fault
from graftkit.selftest.report import CleanRun, PlantedFault
from graftkit.selftest.subject import NotApplicable

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Seen:
    """The first sentence of each check that found something in a copy, and max |Δ| over its weights and its outputs."""

    by: Mapping[str, str]
    weights: float | None = None
    outputs: float | None = None


#: Makes a copy, lets it be changed, and looks at it.
Look = Callable[[Callable[[Path], None]], Seen]


@dataclass(frozen=True, slots=True)
class Bench(Generic[S]):
    """Plants faults into copies of ``subject``. ``silent`` names checks that are left out, and not asked of any fault."""

    subject: S
    look: Look
    silent: Collection[str] = field(default=())

    def fault(self, fault: Fault[S]) -> PlantedFault:
        """Plant one fault and see which checks see it."""
        try:
            place = fault.at(self.subject)
        except NotApplicable as why:
            return PlantedFault(fault.name, not_applicable=str(why))
        if set(fault.seen_by) <= set(self.silent):
            return PlantedFault(fault.name, not_applicable="only what runs the model looks at it")
        seen = self.look(lambda copy: fault.plant(copy, self.subject, place))
        due = [check for check in fault.seen_by if check not in self.silent]
        missed = () if LOADING in seen.by else tuple(check for check in due if check not in seen.by)
        return PlantedFault(fault.name, place, seen.by, missed, seen.weights, seen.outputs)

    def clean(self, name: str, make: Callable[[Path], None]) -> CleanRun:
        """Make one clean copy and see whether a check flags it."""
        return CleanRun(name, self.look(make).by)


def first_sentences(found: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The first sentence of each check that has one, and how many more there are."""
    return {
        check: sentences[0] + (f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else "")
        for check, sentences in found.items()
        if sentences
    }


def largest(values: Iterable[float | None]) -> float | None:
    """The largest of the differences that are numbers, infinite where one is NaN; None where there is none."""
    known = [math.inf if math.isnan(value) else value for value in values if value is not None]
    return max(known, default=None)
