"""The check that runs both checkpoints on the same probes and compares everything that comes out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.skeleton import one_line
from graftkit.errors import few, plural
from graftkit.running.coverage import Coverage
from graftkit.running.forward import Loaded, load, run, undisturbed
from graftkit.running.paging.room import paged as paged_in
from graftkit.running.paging.share import part_of
from graftkit.running.paging.skeleton import split_large_tables
from graftkit.running.probes import KEPT_BYTES, LOGIT_BYTES, Probe, covered_ids, in_result
from graftkit.running.reference import Reference, Step, run_source, timed
from graftkit.running.split.together import forwards, together
from graftkit.verification.checks import Report, Row
from graftkit.verification.comparison import paired
from graftkit.verification.differences import Differences, OutputComparison
from graftkit.verification.distribution import Calls, Capture, Distribution, measure, output_table, positions_for
from graftkit.verification.kl_promise import KLPromise
from graftkit.verification.new_ids import run_new_ids
from graftkit.verification.promises import Scope

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.running.split.crew import Crew
    from graftkit.verification.subject import Progress, Subject


@dataclass(frozen=True, slots=True)
class OutputsReport(Report):
    """What was run, covered and measured. ``failures`` is empty when the promise holds on every probe.

    ``probes`` gives unmasked tokens by probe, ``skipped`` the probes that the source itself refuses, with the reason, and
    ``inputs`` what was made beside token ids. ``not_kept`` counts outputs that did not fit into memory and were not compared;
    ``measured`` says that differences were expected and are figures only; ``new_ids`` is how many of them the result ran on,
    ``paged`` whether parameters were read from the files as the forwards asked for them. ``unit`` is what ``probes`` counts,
    ``coverage`` what of all that applies to this class was compared, and what was not.
    """

    architecture: str
    dtype: str
    probes: Mapping[str, int]
    skipped: Mapping[str, str]
    inputs: tuple[str, ...]
    ids_covered: int
    ids: int
    cached_decoding: str
    coverage: Coverage
    comparisons: tuple[OutputComparison, ...]
    not_kept: int
    mass_mean: float | None
    mass_max: float | None
    distribution: Distribution | None
    seconds: Mapping[str, float]
    failures: tuple[str, ...]
    measured: bool = False
    in_float64: bool = False
    new_ids: int = 0
    paged: bool = False
    unit: str = "tokens"
    name: str = "outputs"
    derived: ClassVar[tuple[str, ...]] = ("passed",)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        tokens = sum(self.probes.values())
        beside = f", with {', '.join(self.inputs)}" if self.inputs else ""
        how = ", parameters paged in from the files" if self.paged else ""
        covered = f", {self.ids_covered} of {self.ids} old ids" if self.unit == "tokens" else ""
        yield Row("probes", "run", f"{tokens} {self.unit}{covered}, {self.dtype}{beside}{how}")
        for name, reason in self.skipped.items():
            yield Row(f"probe {name!r}", "not run", f"the source refuses it: {reason}")
        if not self.cached_decoding.startswith("does not apply"):
            result, _, why = self.cached_decoding.partition(": ")
            yield Row("cached decoding", result, why)
        if self.new_ids:
            yield Row("new ids", "run", f"{self.new_ids} of them, no NaN")
        if self.not_kept:
            yield Row("outputs left out", "not compared", f"{self.not_kept}, for want of memory")
        for group in ("hidden states", "logits", "other outputs"):
            items = [item for item in self.comparisons if _group(item.name) == group]
            if items:
                yield Row(group, _verdict(items, measured=self.measured), _figure(items))
        if self.mass_max is not None:
            yield Row("mass of new ids", "measured", f"mean {self.mass_mean:.3g}, max {self.mass_max:.3g}")
        if self.distribution is not None:
            d = self.distribution
            bound = f" <= {d.bound:.3g} ({d.bound_kind})" if d.bound is not None else f" ({d.bound_kind})"
            result = "measured" if d.bound is None else "bounded" if d.excess <= ROUNDING else "failed"
            yield Row("KL(old, new)", result, f"max {d.kl_max:.3g}{bound}, float64")


#: What float64 itself may add to a KL, in nats.
ROUNDING = 1e-9


def _group(name: str) -> str:
    if "hidden" in name:
        return "hidden states"
    return "logits" if "logits" in name else "other outputs"


def _verdict(items: list[OutputComparison], *, measured: bool) -> str:
    if all(item.bitwise for item in items):
        return "bitwise"
    if measured:
        return "measured"
    return "within tolerance" if all(item.bitwise or item.largest <= item.allowed for item in items) else "failed"


def _figure(items: list[OutputComparison]) -> str:
    text = (
        f"max |Δ| {max(item.largest for item in items):.3g} over {plural(sum(item.places for item in items), 'value')}"
    )
    worst = max(items, key=lambda item: item.kl_max or 0.0)
    if worst.kl_max is None:
        return text
    return f"{text}, KL(old, new) of {worst.name} mean {worst.kl_mean:.3g}, max {worst.kl_max:.3g}"


def compare_outputs(subject: Subject, *, token_budget: int | None = None) -> OutputsReport:
    """Load both checkpoints one after the other, run the same probes, and compare what the scope says of their outputs.

    ``token_budget`` overrides the number of tokens that is taken from the model's size. Where there is a crew it runs both, each of its
    ranks a run of blocks, to the same bits; where it cannot, this process does so alone.

    Raises:
        InputRejected: the source's own load misses tensors, so that its outputs are random.
        VerificationFailed: a checkpoint does not load, or the forward needs inputs that cannot be made.
    """
    return together(subject.crew, "outputs", lambda crew: _compare(replace(subject, crew=crew), token_budget))


def _compare(subject: Subject, token_budget: int | None) -> OutputsReport:
    seconds: dict[str, float] = {}
    backbone, measured = Scope.BACKBONE in subject.scope, bool(subject.scope & (Scope.MEASURE | Scope.REORDERED))
    crew, correspondence = subject.crew, subject.correspondence
    kl = subject.kl() if subject.scope.same_outputs else None
    theirs, ours = correspondence.part
    other_class = theirs != ours or bool(correspondence.gone)
    correspondence = correspondence.of_backbones() if backbone else correspondence
    from_files = max(
        paged_in((place,), KEPT_BYTES + LOGIT_BYTES, wanted=subject.paged) for place in (subject.source, subject.result)
    )
    with undisturbed():
        before = run_source(
            subject.source, correspondence.drawn_ids, subject.seed, token_budget, seconds, _step(subject.progress, "run the source"),
            backbone=backbone, part=theirs, paged=from_files, crew=crew,
        )  # fmt: skip
        with timed(seconds, "load result"):
            dtype = before.dtype if subject.recast else None
            new = (
                load(subject.result, paged=from_files, lent=True, dtype=dtype)
                if crew is None
                else crew.load(subject.result, dtype=dtype)
            )
            split_large_tables(new.model)
        failures = _loading_failures(before, new, subject.added, backbone=backbone, other_class=backbone or other_class)
        new = new.backbone(ours) if backbone else new
        table = output_table(new.model, correspondence.ids.result) if correspondence.ids else None
        found = Differences(correspondence, table, measured=measured)
        with timed(seconds, "run result"):
            failures += _run_result(
                new, before, found, _step(subject.progress, "run the result"), crew, backbone=backbone
            )
        failures += found.failures()
        with timed(seconds, "distribution"):
            distribution = _distribution(found, kl)
    failures += _bound_failures(distribution, found, kl)
    count = sum(n for _, _, n in found.masses)
    return OutputsReport(
        architecture=before.architecture,
        dtype=before.dtype,
        probes=_tokens_by_probe(before.parts),
        skipped=before.skipped,
        inputs=tuple(sorted(before.extra_inputs)),
        ids_covered=covered_ids(before.parts),
        ids=before.live,
        cached_decoding=before.cached,
        coverage=before.coverage,
        comparisons=tuple(found.comparisons()),
        not_kept=before.not_kept,
        mass_mean=sum(mean * n for mean, _, n in found.masses) / count if count else None,
        mass_max=max((largest for _, largest, _ in found.masses), default=None),
        distribution=distribution,
        seconds=seconds,
        failures=tuple(failures),
        measured=measured,
        in_float64=subject.scope.in_float64,
        paged=from_files if crew is None else crew.paged,
        unit=before.parts[0].unit,
        new_ids=0 if failures else min(before.parts[0].ids.shape[1] // 2, len(correspondence.fresh_ids)),
    )


def _tokens_by_probe(parts: list[Probe]) -> dict[str, int]:
    tokens: dict[str, int] = {}
    for part in parts:
        name = part.name.partition(" [")[0]
        tokens[name] = tokens.get(name, 0) + part.tokens
    return tokens


def _step(progress: Progress | None, what: str) -> Step:
    return (lambda share: progress(what, share)) if progress else (lambda _: None)


def _loading_failures(
    before: Reference, new: Loaded, added: frozenset[str], *, backbone: bool, other_class: bool
) -> list[str]:
    failures = [
        f"outputs: the result's load reports {what}: {few(names)}"
        for what, names in (
            ("missing tensors", new.missing),
            ("unexpected tensors", frozenset() if backbone else new.unexpected - before.unexpected - added),
            ("shapes that do not fit", new.mismatched - before.mismatched),
        )
        if names
    ]
    found = (before.architecture if other_class else type(new.model).__name__, new.dtype)
    if found != (before.architecture, before.dtype):
        failures.append(
            f"outputs: the result loads as {' in '.join(found)}, the source as {before.architecture} in {before.dtype}"
        )
    return failures


def _run_result(
    new: Loaded, before: Reference, found: Differences, step: Step, crew: Crew | None, *, backbone: bool
) -> list[str]:
    """Run the result on what the source ran on, comparing as it goes and dropping what was compared."""
    compared = 0
    rows = found.correspondence.ids.result if found.correspondence.ids else 0
    places = math.ceil(positions_for(rows) / len(before.parts)) if rows else 0
    with Capture(found.module) as capture:

        def forward(part: Probe) -> tuple[dict[str, Tensor], Calls]:
            capture.calls.clear()
            outputs = run(new.model, in_result(part, found.correspondence), before.extra_inputs)
            return outputs, capture.calls.copy()

        runs = [partial(forward, part) for part in before.parts]
        with forwards(crew, new.model, runs, [bool(part.steps) for part in before.parts]) as outcomes:
            for index, part in enumerate(before.parts):
                try:
                    with part_of(step, index, len(before.parts), (new.pager, 1)):
                        outputs, calls = next(outcomes)()
                except Exception as error:  # noqa: BLE001 - whatever the forward raises is the finding
                    return [f"outputs: the result's forward fails on probe {part.name!r}: {one_line(error)}"]
                capture.calls[:] = calls
                old = before.kept.pop(part.name)
                pairs, other = paired(before.names[part.name], outputs, found.correspondence)
                if other and not backbone:
                    return [
                        f"outputs: one of the two gives these outputs and the other not, on probe {part.name!r}: {few(other)}"
                    ]
                pairs = hidden_states(old, outputs, found.correspondence) if backbone else pairs
                for name, other_name in pairs.items():
                    if name not in old:  # for want of memory
                        continue
                    found.compare(part, name, old[name], outputs[other_name], capture, places)
                    compared += 1
                del old, outputs, calls  # before the next ones are made
                step((index + 1) / len(before.parts))
    if found.correspondence.fresh_ids:
        first = in_result(before.parts[0], found.correspondence)
        broken = run_new_ids(new.model, first, before.extra_inputs, found.correspondence.fresh_ids)
        if broken:
            return broken
    return [] if compared else ["outputs: source and result have no hidden state in common"]


def hidden_states(
    old: Collection[str], new: Collection[str], correspondence: Correspondence = IDENTITY
) -> dict[str, str]:
    """Names of the hidden states that two base models share, as the old calls them -> as the new does.

    The encoder alone of an encoder-decoder gives without a prefix what the whole gives as ``encoder_...``.
    """
    halved = any(n.startswith("encoder_") for n in old) and not any(n.startswith("encoder_") for n in new)
    names = {correspondence.output_in_source(f"encoder_{name}" if halved else name): name for name in new}
    return {name: other for name, other in names.items() if name is not None and "hidden" in name and name in old}


def _distribution(found: Differences, kl: KLPromise | None) -> Distribution | None:
    import torch

    positions = found.positions()
    if positions is None or found.correspondence.ids is None:
        return None
    with torch.inference_mode():
        return measure(found.module, *positions, found.correspondence, kl)


def _bound_failures(measured: Distribution | None, found: Differences, kl: KLPromise | None) -> list[str]:
    if measured is None:
        promised = kl is not None and kl.kind != "likeliest" and found.correspondence.fresh_ids
        return ["outputs: a bound on the KL is promised, but no output has the vocabulary's size"] if promised else []
    if measured.bound is None or measured.excess <= ROUNDING:
        return []
    whose = (
        "the promised bound" if kl is not None and kl.kind != "likeliest" else "that of ids as likely as the old ones,"
    )
    return [
        f"outputs: KL(old, new) is {measured.kl_max:.3g}, above {whose} {measured.bound:.3g} ({measured.bound_kind})"
    ]
