"""What a selftest found: of each fault which checks saw it, and of each clean copy whether one was flagged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.errors import plural


@dataclass(frozen=True, slots=True)
class PlantedFault:
    """One fault: where it was planted, and the first sentence of each check that saw it.

    ``not_applicable`` says why it cannot exist in this model; ``missed_by`` names the checks that had to see it and did not.
    ``weights`` and ``outputs`` are max |Δ| over them, None where none was compared.
    """

    name: str
    place: str = ""
    seen_by: Mapping[str, str] = dataclasses.field(default_factory=dict)
    missed_by: tuple[str, ...] = ()
    weights: float | None = None
    outputs: float | None = None
    not_applicable: str = ""


@dataclass(frozen=True, slots=True)
class CleanRun:
    """One clean copy, and the sentence of each check that flagged it."""

    name: str
    flagged: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Selftest:
    """The verifier's own report. ``left_out`` names checks that were switched off."""

    model: str
    left_out: tuple[str, ...]
    faults: tuple[PlantedFault, ...]
    clean: tuple[CleanRun, ...]
    seconds: float

    @property
    def planted(self) -> tuple[PlantedFault, ...]:
        """The faults that can exist in this model."""
        return tuple(fault for fault in self.faults if not fault.not_applicable)

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each fault that a check missed and each clean copy that was flagged."""
        missed = [_missed(fault) for fault in self.planted if fault.missed_by]
        flagged = [
            f"clean copy flagged: {run.name}: {next(iter(run.flagged.values()))}" for run in self.clean if run.flagged
        ]
        return (*missed, *flagged)

    @property
    def verdict(self) -> str:
        """One line: how many were caught, and what zero false alarms in N runs say about their rate."""
        caught = sum(bool(fault.seen_by) for fault in self.planted)
        alarms = sum(bool(run.flagged) for run in self.clean)
        rate = (
            f" (rate below {min(3 / len(self.clean), 1):.2g} with 95 % confidence)" if self.clean and not alarms else ""
        )
        without = len(self.faults) - len(self.planted)
        not_applicable = f", {without} not applicable" if without else ""
        flagged = f", {alarms} of {len(self.clean)} clean copies flagged{rate}" if self.clean else ""
        return f"{caught} of {plural(len(self.planted), 'fault')} caught{not_applicable}{flagged}"

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {**dataclasses.asdict(self), "verdict": self.verdict, "failures": list(self.failures)}


def _missed(fault: PlantedFault) -> str:
    where = f"{fault.name} ({fault.place})"
    if not fault.seen_by:
        return f"not caught: {where}"
    return f"not seen by {' and '.join(fault.missed_by)}: {where}; only {', '.join(fault.seen_by)} saw it"
