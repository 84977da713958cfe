"""Two checkpoints, no recipe: `diff` says what differs, streamed; `verify` runs the checks between them.

Where the report of the run that wrote the second lies in its folder, its digests are compared and its promise is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.checkpoint.changes import ValueChange, document_changes
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import VerificationFailed
from graftkit.report.manifest import account_for
from graftkit.verification.accounted import Accounted
from graftkit.verification.composition import measured_class
from graftkit.verification.outputs import OutputsReport, compare_outputs
from graftkit.verification.pair import Pair
from graftkit.verification.promises import Scope
from graftkit.verification.tensors import TensorDifference, tensor_difference
from graftkit.verification.tokenization import TokenizationReport

if TYPE_CHECKING:
    from graftkit.verification.checks import Finding
    from graftkit.verification.lens.report import LensReport
    from graftkit.verification.signal.report import SignalReport

#: The checks between two checkpoints, in the order in which they run.
CHECKS = ("report", "bytes", "config", "tokenizer", "outputs")


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two checkpoints: values of documents, and tensors; ``equal`` counts the equal tensors."""

    values: tuple[ValueChange, ...]
    tensors: tuple[TensorDifference, ...]
    equal: int


def diff(before: str, after: str) -> Difference:
    """Compare config, tokenizer and tensors of two checkpoints, a bounded piece at a time.

    Raises:
        InputRejected: one of them cannot be opened.
    """
    return _diff(Checkpoint.open(before), Checkpoint.open(after))


def _diff(old: Checkpoint, new: Checkpoint) -> Difference:
    tensors, equal = [], 0
    for name in dict.fromkeys([*old.tensors, *new.tensors]):
        found = tensor_difference(name, old.tensors.get(name), new.tensors.get(name))
        if found is None:
            equal += 1
        else:
            tensors.append(found)
    return Difference(document_changes(old, new), tuple(tensors), equal)


@dataclass(frozen=True, slots=True)
class Verification:
    """What :func:`verify` measured between two checkpoints.

    ``found`` gives one sentence for each thing that each check of :data:`CHECKS` found wrong; a check that was left out
    is not in it. ``outputs``, ``lens`` and ``signal`` are None where they were left out or the second checkpoint does not run.
    ``accounted`` is how the second agrees with the report in its folder, None where none lies there or it was left out. ``rows`` is how
    many new rows it has, and ``unjudged`` why they were not all judged; empty where they were, or where the report vouches for them.
    ``vocabulary`` says whether the two take token ids at all, ``left_out`` which checks were not wanted.
    """

    difference: Difference
    tokenization: TokenizationReport | None
    outputs: OutputsReport | None
    found: Mapping[str, tuple[str, ...]]
    lens: LensReport | None = None
    signal: SignalReport | None = None
    accounted: Accounted | None = None
    rows: int = 0
    unjudged: str = ""
    vocabulary: bool = True
    left_out: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One line, where nothing was found: what was verified, or what was promised and measured, and what was not judged."""
        promised = self.accounted.promised if self.accounted else None
        if promised:
            measured = measured_class(self.outputs)
            shown = f"{measured.word} measured" if measured is not None else "outputs not compared"
            return f"verified: B is what was written, byte for byte; promised {promised.sentence()}; {shown}"
        if self.unjudged:
            rows = "the new row was" if self.rows == 1 else f"the {self.rows} new rows were"
            return f"verified on the old vocabulary alone; {rows} not judged: {self.unjudged}"
        rows = "its new row is" if self.rows == 1 else f"its {self.rows} new rows are"
        new = f"; {rows} no longer and no likelier than the old ones" if self.rows else ""
        return f"verified: B does what A did{', on the old vocabulary' if self.vocabulary else ''}{new}"

    @property
    def checks(self) -> tuple[Finding, ...]:
        """What was measured beside :data:`CHECKS`."""
        return tuple(check for check in (self.lens, self.signal) if check is not None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing and no failure."""
        said = self.accounted.notes if self.accounted else ()
        return (*said, *(self.tokenization.notes if self.tokenization else ()))

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each thing found; empty when the second checkpoint does what the first did."""
        return tuple(sentence for sentences in self.found.values() for sentence in sentences)


def verify(
    before: str,
    after: str,
    *,
    outputs: bool = True,
    leave_out: Collection[str] = (),
    lens: bool = False,
    signal: bool = False,
    device: str | None = None,
    paged: bool | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Verification:
    """Check that ``after`` does what ``before`` did, for the old vocabulary, without a recipe.

    ``leave_out`` names checks of :data:`CHECKS` that are not run; ``outputs=False`` leaves that one out.
    ``lens`` adds the comparison in float64, ``signal`` how it travels through the blocks, both on ``device``. With
    ``paged`` parameters are read from the files as the forwards ask for them; None lets the memory that is free
    decide.

    Raises:
        InputRejected: one of them cannot be opened.
        RecipeError: there is no such device.
    """
    if lens or signal:
        from graftkit.verification.lens.setting import device_of

        device_of(device)
    left_out = {*leave_out, *(() if outputs else ("outputs",))}
    old, new = Checkpoint.open(before), Checkpoint.open(after)
    accounted = None if "report" in left_out else account_for(new)
    pair = Pair.of(old, new, accounted)
    found: dict[str, tuple[str, ...]] = {} if accounted is None else {"report": accounted.failures}
    tokenization = measured = None
    if "tokenizer" not in left_out and pair.has_tokenizer:
        tokenization = pair.tokenization()
        found["tokenizer"] = tokenization.failures
    if "config" not in left_out:
        found["config"] = tuple(pair.documents())
    if "outputs" not in left_out and Scope.NOTHING not in pair.accounted.scope:
        measured, found["outputs"] = _outputs(pair, paged, progress)
    if "bytes" not in left_out:
        found["bytes"] = tuple(pair.tensors(measured))
    found = {check: found[check] for check in CHECKS if check in found}
    seen, travelled = None, None
    if lens and Scope.NOTHING not in pair.accounted.scope:
        seen, found["lens"] = _lens(pair, device, paged, progress)
    if signal and Scope.NOTHING not in pair.accounted.scope:
        travelled, found["signal"] = _signal(pair, device, progress)
    unjudged = pair.unjudged(left_out, measured)
    return Verification(
        _diff(old, new), tokenization, measured, found, seen, travelled, accounted, len(pair.correspondence.fresh_ids), unjudged,
        vocabulary=pair.takes_ids, left_out=tuple(check for check in CHECKS if check in left_out),
    )  # fmt: skip


def _signal(
    pair: Pair, device: str | None, progress: Callable[[str, float], None] | None
) -> tuple[SignalReport | None, tuple[str, ...]]:
    from graftkit.verification.signal import compare_signal

    try:
        seen = compare_signal(
            pair.old.directory, pair.new.directory, correspondence=pair.correspondence, scope=pair.accounted.scope,
            device=device, progress=progress,
        )  # fmt: skip
    except VerificationFailed as error:
        return None, (str(error),)
    return seen, tuple(seen.failures)


def _lens(
    pair: Pair, device: str | None, paged: bool | None, progress: Callable[[str, float], None] | None
) -> tuple[LensReport | None, tuple[str, ...]]:
    from graftkit.verification.lens.lens import compare_lens

    try:
        seen = compare_lens(
            pair.old.directory, pair.new.directory, correspondence=pair.correspondence, scope=pair.accounted.scope,
            device=device, paged=paged, progress=progress,
        )  # fmt: skip
    except VerificationFailed as error:
        return None, (str(error),)
    return seen, seen.failures


def _outputs(
    pair: Pair, paged: bool | None, progress: Callable[[str, float], None] | None
) -> tuple[OutputsReport | None, tuple[str, ...]]:
    """What was measured and found; a second checkpoint that does not load or run is found, and nothing is measured."""
    try:
        measured = compare_outputs(
            pair.old.directory, pair.new.directory, correspondence=pair.correspondence,
            kl=None if pair.accounted.scope else pair.bound(),
            scope=pair.accounted.scope, paged=paged, progress=progress,
        )  # fmt: skip
    except VerificationFailed as error:
        return None, (str(error),)
    return measured, (*measured.failures, *pair.shares(measured))
