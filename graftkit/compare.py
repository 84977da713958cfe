"""Two checkpoints, no recipe: `diff` says what differs, streamed; `verify` runs the checks between them.

Where the report of the run that wrote the second lies in its folder, its digests are compared and its promise is what counts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.adapter import CONFIG, open_adapter
from graftkit.checkpoint.changes import ValueChange, document_changes, value_changes
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.recipe_file.paths import expand_path
from graftkit.report.comparison import comparison_json
from graftkit.report.manifest import account_for
from graftkit.report.page import render_top
from graftkit.report.terminal import verification_text
from graftkit.running.runnable import cannot_unpack, refuse_looks
from graftkit.verification.checks import find_kind
from graftkit.verification.composition import measured_class
from graftkit.verification.outputs import OutputsReport
from graftkit.verification.pair import Pair
from graftkit.verification.registry import CHECKPOINTS
from graftkit.verification.registry import verify as run_checks
from graftkit.verification.subject import Subject
from graftkit.verification.tensors import TensorDifference, tensor_difference
from graftkit.verification.tokens.tokenization import TokenizationReport

if TYPE_CHECKING:
    from graftkit.checkpoint.tensors import LazyTensor
    from graftkit.verification.accounted import Accounted
    from graftkit.verification.checks import Finding

#: The checks between two checkpoints, in the order in which they run.
CHECKS = tuple(check.name for check in CHECKPOINTS)

#: Those that a comparison shows in lines of their own, whether they ran or not.
SHOWN = ("report", "bytes", "config", "tokenizer", "outputs")


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two checkpoints: values of documents, and tensors; ``equal`` counts the equal tensors."""

    values: tuple[ValueChange, ...]
    tensors: tuple[TensorDifference, ...]
    equal: int


def diff(before: str | os.PathLike[str], after: str | os.PathLike[str]) -> Difference:
    """Compare config, tokenizer and tensors of two checkpoints, or of two adapters, a bounded piece at a time.

    Raises:
        InputRejected: one of them cannot be opened.
    """
    if _is_adapter(before) and _is_adapter(after):
        old, new = open_adapter(before), open_adapter(after)
        values = value_changes({CONFIG: old.config}, {CONFIG: new.config})
        return _difference(values, old.tensors, new.tensors)
    return _diff(Checkpoint.open(before), Checkpoint.open(after))


def _is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an adapter and no base beside it."""
    try:
        place = Path(expand_path(os.fspath(folder)))
    except ValueError:  # it is refused in full when it is opened
        return False
    return (place / CONFIG).is_file() and not (place / "config.json").exists()


def _diff(old: Checkpoint, new: Checkpoint) -> Difference:
    return _difference(document_changes(old, new), old.all_tensors, new.all_tensors)


def _difference(
    values: tuple[ValueChange, ...], old: Mapping[str, LazyTensor], new: Mapping[str, LazyTensor]
) -> Difference:
    tensors, equal = [], 0
    for name in dict.fromkeys([*old, *new]):
        found = tensor_difference(name, old.get(name), new.get(name))
        if found is None:
            equal += 1
        else:
            tensors.append(found)
    return Difference(values, tuple(tensors), equal)


@dataclass(frozen=True, slots=True)
class Verification:
    """What :func:`verify` found between two checkpoints: what differs, and one finding for each check that ran.

    ``cannot_run`` says why neither is run on this machine, empty where both are.
    """

    difference: Difference
    findings: tuple[Finding, ...]
    pair: Pair
    left_out: tuple[str, ...] = ()
    cannot_run: str = ""

    @property
    def found(self) -> Mapping[str, tuple[str, ...]]:
        """One sentence for each thing found wrong, by check; a check that did not run is not in it."""
        return {finding.name: finding.failures for finding in self.findings}

    @property
    def accounted(self) -> Accounted | None:
        """How the second agrees with the report in its folder; None where none lies there or it was left out."""
        return self.pair.report

    @property
    def tokenization(self) -> TokenizationReport | None:
        """What was found of the tokenizers, None where they were not compared."""
        return find_kind(self.findings, TokenizationReport)

    @property
    def outputs(self) -> OutputsReport | None:
        """What was measured of the outputs, None where they were not compared or the second does not run."""
        return find_kind(self.findings, OutputsReport)

    @property
    def new_rows(self) -> int:
        """How many ids the second has that the first has not."""
        return len(self.pair.correspondence.fresh_ids)

    @property
    def unjudged(self) -> str:
        """Why the new rows were not all judged; empty where they were, or where the report vouches for them."""
        return self.pair.unjudged(self.left_out, self.outputs)

    @property
    def verdict(self) -> str:
        """One line, where nothing was found: what was verified, or what was promised and measured, and what was not judged."""
        promised = self.accounted.promised if self.accounted else None
        if promised:
            measured = measured_class(self.outputs, promised)
            shown = f"{measured.word} measured" if measured is not None else "outputs not compared"
            return f"verified: B is what was written, byte for byte; promised {promised.sentence()}; {shown}"
        if self.cannot_run:
            return f"verified: bytes, config and tokenizer; outputs were not compared ({self.cannot_run})"
        if self.unjudged:
            rows = "the new row was" if self.new_rows == 1 else f"the {self.new_rows} new rows were"
            return f"verified on the old vocabulary alone; {rows} not judged: {self.unjudged}"
        rows = "its new row is" if self.new_rows == 1 else f"its {self.new_rows} new rows are"
        new = f"; {rows} no longer and no likelier than the old ones" if self.new_rows else ""
        return f"verified: B does what A did{', on the old vocabulary' if self.pair.takes_ids else ''}{new}"

    @property
    def checks(self) -> tuple[Finding, ...]:
        """The findings beside those that are shown anyway."""
        return tuple(finding for finding in self.findings if finding.name not in SHOWN)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing and no failure."""
        said = self.accounted.notes if self.accounted else ()
        return (*said, *(self.tokenization.notes if self.tokenization else ()))

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each thing found; empty when the second checkpoint does what the first did."""
        return tuple(sentence for finding in self.findings for sentence in finding.failures)

    def __repr__(self) -> str:
        """What `graftkit verify` prints of two checkpoints."""
        return verification_text(self)

    def _repr_html_(self) -> str:
        """The top of the page, for notebooks."""
        return render_top(comparison_json(self.pair.old.name, self.pair.new.name, self))

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "difference": dataclasses.asdict(self.difference),
            "tokenization": self.tokenization.to_json() if self.tokenization else None,
            "outputs": self.outputs.to_json() if self.outputs else None,
            "accounted": self.accounted.to_json() if self.accounted else None,
            **{check.name: check.to_json() for check in self.checks},
            "found": self.found,
            "failures": self.failures,
            "verdict": "" if self.failures else self.verdict,
            "rows": self.new_rows,
            "unjudged": self.unjudged,
            "vocabulary": self.pair.takes_ids,
            "left_out": self.left_out,
        }


def verify(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
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
        RecipeError: there is no such device, or models that cannot be run here are to be looked at.
    """
    if lens or signal:
        from graftkit.verification.lens.setting import device_of

        device_of(device)
    left_out = {*leave_out, *(() if outputs else ("outputs",))}
    old, new = Checkpoint.open(before), Checkpoint.open(after)
    cannot_run = cannot_unpack(old) or cannot_unpack(new)
    refuse_looks(cannot_run, [name for name, asked in (("lens", lens), ("signal", signal)) if asked])
    pair = Pair.of(old, new, None if "report" in left_out else account_for(new))
    subject = Subject(
        old.directory,
        new.directory,
        pair.accounted.promised,
        scope=pair.accounted.scope,
        correspondence=pair.correspondence,
        added=pair.added,
        recast=pair.recast,
        tokens=pair.new_tokens(),
        kl=pair.bound,
        wanted=frozenset(name for name, asked in (("lens", lens), ("signal", signal)) if asked),
        left_out=frozenset(left_out),
        not_run=cannot_run,
        pair=pair,
        device=device,
        paged=paged,
        progress=progress,
    )
    findings = tuple(run_checks(subject))
    return Verification(
        _diff(old, new), findings, pair, tuple(check for check in CHECKS if check in left_out), cannot_run
    )
