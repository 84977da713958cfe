"""Plant every fault into a copy of a checkpoint, run the public `verify` on it, and on clean copies."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from graftkit.compare import CHECKS, verify
from graftkit.errors import InputRejected, RecipeError
from graftkit.selftest.clean import CleanCopy, clean_copies
from graftkit.selftest.copies import copy_checkpoint
from graftkit.selftest.fault import LOADING, OUTPUTS, Fault
from graftkit.selftest.faults import FAULTS
from graftkit.selftest.report import CleanRun, PlantedFault, Selftest
from graftkit.selftest.subject import NotApplicable, Subject
from graftkit.verification.outputs import OutputsReport

#: ``(what is being done, done, in all)``.
Progress = Callable[[str, float, float], None]

#: Clean copies that are made: none of them flagged says that the false alarm rate is below 3/20 (95 %).
CLEAN = 20


def selftest(
    model: str | None = None,
    *,
    leave_out: Collection[str] = (),
    outputs: bool = True,
    clean: int = CLEAN,
    faults: Sequence[Fault] = FAULTS,
    progress: Progress | None = None,
) -> Selftest:
    """Verify the verifier on ``model``, by default the one that ships with the project.

    ``leave_out`` names checks that are switched off, which the report then shows to be missed; ``outputs=False`` leaves
    out the forward, and does not ask it of any fault.

    Raises:
        RecipeError: no model is named and none ships, or a check is not known.
        InputRejected: the model itself cannot be opened.
    """
    unknown = sorted(set(leave_out) - set(CHECKS))
    if unknown:
        raise RecipeError(f"selftest: there is no check {unknown[0]!r}; the checks are {', '.join(CHECKS)}")
    start, model = time.perf_counter(), model or _shipped()
    subject = Subject.open(model)
    copies = list(clean_copies(clean))
    planted, runs = [], []
    with tempfile.TemporaryDirectory(prefix="graftkit-selftest-") as room:
        bench = _Bench(subject, Path(room), frozenset(leave_out), outputs=outputs)
        for index, fault in enumerate(faults):
            planted.append(bench.fault(fault))
            _tell(progress, "plant faults", index + 1, len(faults))
        for index, copy in enumerate(copies):
            runs.append(bench.clean(copy))
            _tell(progress, "clean copies", index + 1, len(copies))
    return Selftest(model, tuple(leave_out), tuple(planted), tuple(runs), round(time.perf_counter() - start, 3))


class _Bench:
    """Makes one copy at a time, and lets the checks run on it."""

    def __init__(self, subject: Subject, room: Path, leave_out: frozenset[str], *, outputs: bool) -> None:
        self._subject, self._room, self._leave_out, self._outputs = subject, room, leave_out, outputs

    def fault(self, fault: Fault) -> PlantedFault:
        """Plant one fault and see which checks see it."""
        try:
            place = fault.at(self._subject)
        except NotApplicable as why:
            return PlantedFault(fault.name, not_applicable=str(why))
        seen, weights, outputs = self._run(lambda copy: fault.plant(copy, self._subject, place))
        due = [check for check in fault.seen_by if self._outputs or check != OUTPUTS]
        missed = () if LOADING in seen else tuple(check for check in due if check not in seen)
        return PlantedFault(fault.name, place, seen, missed, weights, outputs)

    def clean(self, copy: CleanCopy) -> CleanRun:
        """Make one clean copy and see whether a check flags it."""
        return CleanRun(copy.name, self._run(copy.make)[0])

    def _run(self, change: Callable[[Path], None]) -> tuple[Mapping[str, str], float | None, float | None]:
        """The first sentence of each check that found something in a changed copy; max |Δ| over weights and over outputs."""
        target = copy_checkpoint(self._subject.checkpoint, self._room / "copy")
        try:
            change(target)
            try:
                found = verify(
                    str(self._subject.checkpoint.directory),
                    str(target),
                    outputs=self._outputs,
                    leave_out=self._leave_out,
                )
            except InputRejected as refused:
                return {LOADING: str(refused).replace(str(target), "copy")}, None, None
        finally:
            shutil.rmtree(target)
        seen = {check: _first(sentences) for check, sentences in found.found.items() if sentences}
        weights = (item.largest for item in found.difference.tensors if item.largest is not None)
        return seen, max(weights, default=None), _largest(found.outputs)


def _first(sentences: tuple[str, ...]) -> str:
    return sentences[0] + (f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else "")


def _largest(outputs: OutputsReport | None) -> float | None:
    """Max |Δ| over everything that was compared; infinite where an output holds NaN or has another shape."""
    if outputs is None or not outputs.comparisons:
        return None
    broken = any(not item.bitwise and not item.largest for item in outputs.comparisons)
    return math.inf if broken else max(item.largest for item in outputs.comparisons)


def _tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)


def _shipped() -> str:
    """The model that lies beside the package in a clone of the project."""
    path = Path(__file__).parents[2] / "recipes" / "models" / "demo-lm"
    if not path.is_dir():
        raise RecipeError("selftest: no model ships with an installed package; name one: graftkit selftest MODEL")
    return str(path)
