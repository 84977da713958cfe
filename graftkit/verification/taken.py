"""The check of a module that was taken whole from another checkpoint: in the result it does what it does in the donor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graftkit.architecture.correspondence import Correspondence
from graftkit.errors import plural
from graftkit.verification.checks import LoadsModels, Report, Row
from graftkit.verification.promises import Scope
from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class TakenReport(Report):
    """How many values of the hidden states of the module (the donor's name for it, the result's) were compared bit for bit."""

    modules: tuple[str, str]
    values: int
    failures: tuple[str, ...]
    name: str = "taken module"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        figure = f"hidden states of {self.modules[1] or 'the whole'} beside the donor's, {plural(self.values, 'value')}"
        yield Row(self.name, "failed" if self.failures else "bitwise", figure)


@dataclass(frozen=True, slots=True)
class TakenCheck(LoadsModels):
    """``donor`` is the folder that the module was taken from, ``modules`` the donor's and the base's name for it in memory."""

    donor: Path
    modules: tuple[str, str]
    name: str = "taken module"

    def applies(self, subject: Subject) -> bool:
        """Where models may be loaded and no later operation changes what the module gives."""
        return subject.runs and not subject.later_scope & (Scope.MEASURE | Scope.NOTHING)

    def run(self, subject: Subject) -> TakenReport:
        """Run the module of both alone; see :func:`~graftkit.verification.outputs.compare_outputs`."""
        from graftkit.verification.outputs import compare_outputs

        found = compare_outputs(
            Subject(
                self.donor,
                subject.result,
                correspondence=Correspondence(part=self.modules).then(subject.later),
                scope=Scope.BACKBONE,
                seed=subject.seed,
                paged=subject.paged,
                progress=subject.progress,
            )
        )
        failures = tuple(f"taken module: {sentence.removeprefix('outputs: ')}" for sentence in found.failures)
        return TakenReport(self.modules, sum(item.places for item in found.comparisons), failures)
