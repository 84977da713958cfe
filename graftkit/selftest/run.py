"""Plant every fault into a copy of a checkpoint, run the public `verify` on it, and on clean copies."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from graftkit.compare import CHECKS, verify
from graftkit.errors import InputRejected, RecipeError
from graftkit.running.remembered import remembered_source
from graftkit.selftest import adapters, grown, trained
from graftkit.selftest.adapter_faults import ADAPTER_FAULTS
from graftkit.selftest.adapters import AdapterSubject
from graftkit.selftest.bench import Bench, Look, Seen, first_sentences, largest
from graftkit.selftest.clean import CleanCopy, clean_copies
from graftkit.selftest.copies import copy_checkpoint
from graftkit.selftest.fault import BASE, GRADIENTS, LOADING, OUTPUTS, Fault
from graftkit.selftest.faults import FAULTS
from graftkit.selftest.grown import GROWN_FAULTS, GrownSubject
from graftkit.selftest.kernels import KERNELS
from graftkit.selftest.report import CleanRun, PlantedFault, Selftest
from graftkit.selftest.subject import NotApplicable, Subject
from graftkit.selftest.trimmed import TRIMMED_FAULTS, make_trimmed
from graftkit.verification.outputs import OutputsReport

T = TypeVar("T")

#: ``(what is being done, done, in all)``.
Progress = Callable[[str, float, float], None]

#: Clean copies that are made: none of them flagged says that the false alarm rate is below 3/20 (95 %).
CLEAN = 20

#: What a run without the forward does not look at: a base's weights are only digested where it is loaded.
FUNCTIONAL = (OUTPUTS, GRADIENTS, BASE)


def selftest(
    model: str | None = None,
    *,
    leave_out: Collection[str] = (),
    outputs: bool = True,
    clean: int = CLEAN,
    faults: Sequence[Fault[Subject]] = FAULTS,
    adapter_faults: Sequence[Fault[AdapterSubject]] = ADAPTER_FAULTS,
    grown_faults: Sequence[Fault[GrownSubject]] = GROWN_FAULTS,
    trimmed_faults: Sequence[Fault[GrownSubject]] = TRIMMED_FAULTS,
    progress: Progress | None = None,
) -> Selftest:
    """Verify the verifier on ``model``, by default the one that ships, on an adapter made for it, on a grown and on a trimmed output.

    ``leave_out`` names checks that are switched off, which the report then shows to be missed; ``outputs=False`` leaves
    out the forward, and does not ask it of any fault. Without ``adapter_faults`` no adapter is made, without ``grown_faults`` or
    ``trimmed_faults`` no such output.

    Raises:
        RecipeError: no model is named and none ships, or a check is not known.
        InputRejected: the model itself cannot be opened.
    """
    known = tuple(dict.fromkeys((*CHECKS, *adapters.CHECKS)))
    unknown = sorted(set(leave_out) - set(known))
    if unknown:
        raise RecipeError(f"selftest: there is no check {unknown[0]!r}; the checks are {', '.join(known)}")
    start, model = time.perf_counter(), model or _shipped()
    subject = Subject.open(model)
    copies = list(clean_copies(clean))
    with tempfile.TemporaryDirectory(prefix="graftkit-selftest-") as folder:
        room = Path(folder)
        bench = Bench(subject, _look_at(subject, room, leave_out, outputs=outputs), () if outputs else FUNCTIONAL)
        with remembered_source():
            planted = [bench.fault(fault) for fault in with_progress(progress, "plant faults", faults)]
            runs = [bench.clean(copy.name, copy.make) for copy in with_progress(progress, "clean copies", copies)]
        if copies and outputs and OUTPUTS not in leave_out:
            runs += _under_other_kernels(bench, copies[0])
        outputs_made = (("grown", GrownSubject.make, grown_faults), ("trimmed", make_trimmed, trimmed_faults))
        for name, make, own_faults in outputs_made:
            if own_faults:
                more = _on_an_output(name, make, subject, room, own_faults, leave_out, outputs=outputs)
                planted, runs = [*planted, *more[0]], [*runs, *more[1]]
        if adapter_faults:
            more = _on_an_adapter(subject, room, adapter_faults, copies, leave_out, outputs=outputs, progress=progress)
            planted, runs = [*planted, *more[0]], [*runs, *more[1]]
    return Selftest(model, tuple(leave_out), tuple(planted), tuple(runs), round(time.perf_counter() - start, 3))


def _under_other_kernels(bench: Bench[Subject], copy: CleanCopy) -> Iterator[CleanRun]:
    for name, context in KERNELS.items():
        with context():
            yield bench.clean(f"{copy.name}; {name}", copy.make)


def _on_an_output(
    name: str,
    make: Callable[[Subject, Path], GrownSubject],
    subject: Subject,
    room: Path,
    faults: Sequence[Fault[GrownSubject]],
    leave_out: Collection[str],
    *,
    outputs: bool,
) -> tuple[list[PlantedFault], list[CleanRun]]:
    """Plant faults into an output that lies beside its report; these are faults of files, so that no model is run for them."""
    try:
        made = make(subject, room)
    except NotApplicable as why:
        return [PlantedFault(fault.name, not_applicable=str(why)) for fault in faults], []
    bench = Bench(made, grown.look_at(made, room, leave_out, outputs=False), FUNCTIONAL)
    clean = Bench(made, grown.look_at(made, room, leave_out, outputs=outputs))
    runs = [clean.clean(f"{name}; {copy.name}", copy.make) for copy in grown.clean_copies()]
    return [bench.fault(fault) for fault in faults], runs


def _on_an_adapter(
    subject: Subject,
    room: Path,
    faults: Sequence[Fault[AdapterSubject]],
    copies: Sequence[CleanCopy],
    leave_out: Collection[str],
    *,
    outputs: bool,
    progress: Progress | None,
) -> tuple[list[PlantedFault], list[CleanRun]]:
    """Plant faults into an adapter made for the model, and look at clean copies of it and at trained ones."""
    try:
        adapter = AdapterSubject.make(subject, room)
    except NotApplicable as why:
        return [PlantedFault(fault.name, not_applicable=str(why)) for fault in faults], []
    bench = Bench(adapter, adapters.look_at(adapter, room, leave_out, outputs=outputs), () if outputs else FUNCTIONAL)
    planted = [bench.fault(fault) for fault in with_progress(progress, "faults in adapters", faults)]
    runs = [
        bench.clean(f"adapter; {copy.name}", adapters.spell_again(adapter, copy))
        for copy in with_progress(progress, "clean adapters", copies)
    ]
    if copies and outputs and not leave_out:
        runs += trained.clean_runs(adapter, room)
    return planted, runs


def _look_at(subject: Subject, room: Path, leave_out: Collection[str], *, outputs: bool) -> Look:
    """Look at changed copies of the model with `verify`."""

    def look(change: Callable[[Path], None]) -> Seen:
        target = copy_checkpoint(subject.checkpoint, room / "copy")
        try:
            change(target)
            source = str(subject.checkpoint.directory)
            try:
                found = verify(source, str(target), outputs=outputs, leave_out=leave_out)
            except InputRejected as refused:
                return Seen({LOADING: str(refused).replace(str(target), "copy")})
        finally:
            shutil.rmtree(target)
        weights = largest(item.largest for item in found.difference.tensors)
        return Seen(first_sentences(found.found), weights, _largest_output_gap(found.outputs))

    return look


def _largest_output_gap(outputs: OutputsReport | None) -> float | None:
    """Max |Δ| over everything that was compared; infinite where an output holds NaN or has another shape."""
    if outputs is None or not outputs.comparisons:
        return None
    broken = any(not item.bitwise and not item.largest for item in outputs.comparisons)
    return math.inf if broken else max(item.largest for item in outputs.comparisons)


def with_progress(progress: Progress | None, what: str, items: Sequence[T]) -> Iterator[T]:
    """Yield the items, and say after each how many are done."""
    for done, item in enumerate(items, 1):
        yield item
        if progress is not None:
            progress(what, done, len(items))


def _shipped() -> str:
    """The model that lies beside the package in a clone of the project."""
    path = Path(__file__).parents[2] / "recipes" / "models" / "demo-lm"
    if not path.is_dir():
        raise RecipeError("selftest: no model ships with an installed package; name one: graftkit selftest MODEL")
    return str(path)
