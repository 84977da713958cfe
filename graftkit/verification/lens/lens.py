"""The lens: both checkpoints in true float64, module by module, and in their own dtype beside the source's own noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.skeleton import one_line
from graftkit.errors import RecipeError, few
from graftkit.running.float64 import float64
from graftkit.running.forward import Loaded, keep_freed_memory, outputs_of, run, undisturbed
from graftkit.running.nulls import null_runs
from graftkit.running.paging.room import paged as paged_in
from graftkit.running.paging.share import part_of
from graftkit.running.paging.skeleton import split_large_tables
from graftkit.running.place import Place
from graftkit.running.probes import Probe, in_result
from graftkit.running.reference import Step, timed
from graftkit.running.split.together import together
from graftkit.verification.comparison import paired
from graftkit.verification.lens.floor import Floor
from graftkit.verification.lens.noise import NoiseTally
from graftkit.verification.lens.report import EXACT, RESULT, SOURCE, FirstDifference, LensReport
from graftkit.verification.lens.setting import Setting, device_of, in_float64, load_both, prepare
from graftkit.verification.lens.source_outputs import SourceOutputs
from graftkit.verification.lens.trace import KEPT_BYTES, Gaps, Trace, compare, own_differences, record
from graftkit.verification.lens.unrounded import unrounded
from graftkit.verification.outputs import hidden_states
from graftkit.verification.promises import Scope

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from graftkit.verification.subject import Progress, Subject

#: Operations that the lens' probes may cost in one forward: a third of what the outputs check takes, for it runs many.
OPERATIONS = 1e11

#: How many null runs there are of a probe, about: they tell the progress alone.
NULL_RUNS = 3

#: Null runs are made on the first probes, until these many tokens were run.
NULL_TOKENS = 900


@dataclass(slots=True)
class _Found:
    trace: Trace = field(default_factory=Trace)
    outputs: dict[str, float] = field(default_factory=dict)
    ran: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def compare_lens(subject: Subject, *, token_budget: int | None = None) -> LensReport:
    """Load both checkpoints, run the same probes in float64 and in their own dtype, and compare.

    Both models are in memory at once, in their own dtype, or their parameters are read from the files as the forwards ask for them.
    ``token_budget`` overrides the number of tokens that is taken from the model's size. Where there is a crew it runs both, each
    of its ranks a run of blocks, and what modules in a block give is compared where it lies; where it cannot, this process does
    so alone.

    Raises:
        InputRejected: the source does not load, or its load misses tensors, so that its outputs are random.
        RecipeError: there is no such device, or only models in memory run on it.
        VerificationFailed: the result does not load, or a forward does not run in float64.
    """
    return together(subject.crew, "lens", lambda crew: _compare(replace(subject, crew=crew), token_budget))


def _compare(subject: Subject, token_budget: int | None) -> LensReport:
    place, seconds = device_of(subject.device), dict[str, float]()
    from_files = _paged(subject.source, subject.result, place, wanted=subject.paged)
    with undisturbed():
        with timed(seconds, "load"):
            backbone = Scope.BACKBONE in subject.scope
            old, new = load_both(subject, place, paged=from_files)
            correspondence = subject.correspondence.of_backbones() if backbone else subject.correspondence
            for loaded in (old, new):
                split_large_tables(loaded.model)
            keep_freed_memory(old)
        tokens = token_budget or max(int(OPERATIONS / (2 * old.model.num_parameters())), 64)
        with timed(seconds, "floor"):
            setting = prepare(subject.source, old, new, correspondence, subject.seed, tokens, backbone=backbone)
        noise = NoiseTally()
        with timed(seconds, "run"):
            found = _run(setting, noise, subject.progress)
        first = _first(setting, found)
    measured = Scope.MEASURE in subject.scope
    failures = [*_loading_failures(new), *found.failures, *([] if measured else _failures(setting.floor, found, first))]
    return LensReport(
        architecture=type(old.model).__name__, dtype=old.dtype, device=str(place), probes=found.ran, skipped=found.skipped,
        floor=setting.floor, outputs=found.outputs, modules=found.trace.by_module(), first=first,
        noise=noise.report(RESULT), seconds=seconds, failures=tuple(failures), measured=measured,
        paged=from_files if subject.crew is None else subject.crew.paged, unit=setting.parts[0].unit,
    )  # fmt: skip


def _paged(source: Place, result: Place, device: torch.device, *, wanted: bool | None) -> bool:
    if device.type == "cpu":
        return paged_in((source, result), KEPT_BYTES, wanted=wanted)
    if wanted:
        raise RecipeError(
            f"--device: parameters are paged in on the cpu only, not on {device}; leave one of the two out"
        )
    return False


def _run(setting: Setting, noise: NoiseTally, progress: Progress | None) -> _Found:
    found = _Found()
    step: Step = partial(progress, "look through the lens") if progress else _say_nothing
    for index, part in enumerate(setting.parts):
        nulls = NULL_RUNS if sum(found.ran.values()) < NULL_TOKENS else 0
        with part_of(step, index, len(setting.parts), (setting.old.pager, 2 + nulls), (setting.new.pager, 2)):
            if not _run_part(setting, part, noise, found):
                break
        step((index + 1) / len(setting.parts))
    return found


def _say_nothing(_: float) -> None:
    pass


def _run_part(setting: Setting, part: Probe, noise: NoiseTally, found: _Found) -> bool:
    """Run one probe; False when the result's forward fails. What the source refuses is left out of the comparison, and said."""
    try:
        native = run(setting.old.model, part, setting.extra_inputs)
    except Exception as error:  # noqa: BLE001
        found.skipped[part.name] = one_line(error)
        return True
    name = part.name.partition(" [")[0]
    found.ran[name] = found.ran.get(name, 0) + part.tokens
    return _compare_part(setting, part, native, noise, found)


def _compare_part(setting: Setting, part: Probe, native: dict[str, Tensor], noise: NoiseTally, found: _Found) -> bool:
    """Run one probe every way; False when the result's forward fails, which is noted."""
    old, new, extra_inputs, correspondence = (
        setting.old.model,
        setting.new.model,
        setting.extra_inputs,
        setting.correspondence,
    )
    gaps, given = Gaps(), in_result(part, correspondence)
    with in_float64(setting.old), float64(old):
        kept, exact = record(old, lambda: outputs_of(old, part, extra_inputs))
    if setting.backbone:
        kept = {key: value for key, value in kept.items() if key[0]}  # the two may give another number of outputs
    try:
        with unrounded(old, new, correspondence), float64(new):
            other = compare(
                new, lambda: outputs_of(new, given, extra_inputs), kept, found.trace, part.name, correspondence, gaps
            )
        ours = run(new, given, extra_inputs)
    except Exception as error:  # noqa: BLE001 - whatever the forward raises is the finding
        found.failures.append(f"lens: the result's forward fails on probe {part.name!r}: {one_line(error)}")
        return False
    if setting.backbone:
        pairs, alone = hidden_states(exact, other, correspondence), frozenset[str]()
        if not pairs:
            found.failures.append("lens: source and result have no hidden state in common")
            return False
    else:
        pairs, alone = paired(exact, other, correspondence)
    for name in (*pairs, *(alone & exact.keys())):
        _note_output(found, name, exact[name], other.get(pairs.get(name, name)), correspondence, gaps)
    exact, native = ({name: outputs[name] for name in pairs} for outputs in (exact, native))
    other, ours = ({name: outputs[new_name] for name, new_name in pairs.items()} for outputs in (other, ours))
    source = SourceOutputs(part, exact, native, setting.rows, correspondence)
    noise.add(SOURCE, source, native)
    noise.add(EXACT, source.widely(), other)
    noise.add(RESULT, source, ours)
    if sum(found.ran.values()) - part.tokens < NULL_TOKENS:
        for name, outputs in null_runs(old, part, extra_inputs):
            noise.add(name, source, outputs, null=True)
    return True


def _note_output(
    found: _Found, name: str, old: Tensor, new: Tensor | None, correspondence: Correspondence, gaps: Gaps
) -> None:
    name = name.rpartition(" ")[2]
    apart = None if new is None else gaps("", old, new, correspondence)
    found.outputs[name] = max(found.outputs.get(name, 0.0), float("inf") if apart is None else apart)


def _first(setting: Setting, found: _Found) -> FirstDifference | None:
    entry = found.trace.first(setting.floor.threshold)
    if entry is None:
        return None
    tensors = own_differences(setting.old.model, setting.new.model, entry.name, setting.correspondence)
    reaches = any(value > setting.floor.threshold for value in found.outputs.values())
    shown = setting.correspondence.shown(entry.name)
    return FirstDifference(entry.name, entry.largest, entry.probe, tensors, entry.unlike, reaches, shown)


def _loading_failures(new: Loaded) -> list[str]:
    return [f"lens: the result's load reports missing tensors: {few(new.missing)}"] if new.missing else []


def _failures(floor: Floor, found: _Found, first: FirstDifference | None) -> Iterator[str]:
    name, largest = max(found.outputs.items(), key=lambda item: item[1], default=("", 0.0))
    if largest > floor.threshold:
        where = f"; first difference: {first.sentence()}" if first else ""
        yield (
            f"lens: {name} differs in float64 by {largest:.3g} of its RMS, above {floor.threshold:.1e}"
            f" (100 times the floor){where}"
        )
