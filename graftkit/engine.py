"""Plan and apply: the one way of a recipe through graftkit."""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.vocabulary import account
from graftkit.checkpoint.adapter import FOLDER, Adapter, write_adapter
from graftkit.checkpoint.changes import TensorChange, ValueChange, document_changes, tensor_changes
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.staging import Staging, refuse_output, require_space
from graftkit.checkpoint.write import bytes_to_write, write_checkpoint
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.operations import IMPLEMENTATIONS, Context, Outcome, Written
from graftkit.operations.combinations import combined
from graftkit.recipe import Recipe, load_recipe, parse_recipe
from graftkit.report.report import Report, write_report
from graftkit.verification.checks import CheckReport
from graftkit.verification.composition import check_measured, compose
from graftkit.verification.outputs import OutputsReport, compare_outputs
from graftkit.verification.probes import KEPT_BYTES, LOGIT_BYTES
from graftkit.verification.promises import Promise, Scope
from graftkit.verification.structural import LedgerEntry, StructureCheck, check_adapter
from graftkit.verification.tokenization import TokenizationReport, check_tokenization

#: ``(what is being done, bytes or share done, bytes or share in all)``.
Progress = Callable[[str, float, float], None]

#: Room for tokenizer, config, report and file system overhead, beside the tensors.
SPARE_BYTES = 32 << 20

#: Memory for planning and writing, whatever the model's size: pieces of tables in float64, and the tokenizer.
WRITING_BYTES = 300 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What `apply` would write, computed from headers, config and tokenizer alone."""

    recipe: Recipe
    source: Checkpoint
    result: Checkpoint
    outcomes: tuple[Outcome, ...]
    promise: Promise

    @property
    def tensors(self) -> tuple[TensorChange, ...]:
        """Every tensor that is not taken over as it is."""
        return tensor_changes(self.source, self.result)

    @property
    def values(self) -> tuple[ValueChange, ...]:
        """Every value that changes in config, generation config and tokenizer files."""
        return document_changes(self.source, self.result)

    @property
    def bytes_taken_over(self) -> int:
        """Bytes of shards that are taken over whole."""
        return bytes_to_write(self.source, self.result)[0] if self.writes_base else 0

    @property
    def bytes_written(self) -> int:
        """Bytes of shards that are written anew, unchanged tensors in them copied as byte ranges; and of the adapter."""
        base = bytes_to_write(self.source, self.result)[1] if self.writes_base else 0
        return base + (self.adapter.nbytes if self.adapter else 0)

    @property
    def memory(self) -> int:
        """Bytes of memory that `apply` needs beside the imports, about.

        Verifying outputs holds one model at a time and what the source gave, lens and signal hold both; writing holds pieces.
        Where models are paged in, outputs and lens hold no more than writing does.
        """
        wanted = self.recipe.verify
        both = (wanted.lens or wanted.signal) and Scope.NOTHING not in self.scope
        if not (both or self.compares_outputs):
            return WRITING_BYTES
        if wanted.paged is True and not wanted.signal:
            return WRITING_BYTES + KEPT_BYTES + LOGIT_BYTES
        models = [sum(tensor.nbytes for tensor in c.tensors.values()) for c in (self.source, self.result)]
        return (sum(models) if both else max(models)) + KEPT_BYTES + LOGIT_BYTES

    @property
    def paged(self) -> bool | None:
        """Whether parameters are paged in; None where the memory that is free decides."""
        return None if self.recipe.verify.paged == "auto" else self.recipe.verify.paged

    @property
    def compares_outputs(self) -> bool:
        """Whether the base's outputs are compared with the source's."""
        return self.recipe.verify.outputs and self.writes_base and Scope.NOTHING not in self.scope

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that an operation makes, if one does."""
        return next((outcome.adapter for outcome in self.outcomes if outcome.adapter), None)

    @property
    def writes_base(self) -> bool:
        """Whether the base differs from the source, so that it is written beside the adapter."""
        return self.result is not self.source

    @property
    def scope(self) -> Scope:
        """What of the outputs is compared with the source's."""
        return functools.reduce(operator.or_, (outcome.scope for outcome in self.outcomes), Scope.EVERYTHING)

    @property
    def new_tokens(self) -> Mapping[str, int]:
        """Content of each new token -> its id."""
        return {t: i for o in self.outcomes if o.vocabulary for t, i in o.vocabulary.new_tokens.items()}


def _as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    return load_recipe(recipe) if isinstance(recipe, str | Path) else parse_recipe(recipe)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Leave the cyclic collector out: what a plan makes stays, and it would walk over all of torch again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collector_paused()
def plan(recipe: Recipe | Mapping[str, Any] | str | Path) -> Plan:
    """Plan a recipe: read headers, config and tokenizer, no weights.

    Raises:
        RecipeError: the recipe is wrong, or asks for what this checkpoint has no place for.
        InputRejected: the checkpoint cannot be operated on.
    """
    recipe = _as_recipe(recipe)
    source = result = Checkpoint.open(recipe.base_model, revision=recipe.revision)
    outcomes: tuple[Outcome, ...] = ()
    for place, spec in enumerate(recipe.operations):
        context = Context(recipe.seed, place, source, Path(recipe.output), outcomes)
        outcome = IMPLEMENTATIONS[spec.op](spec, result, context)
        outcome = combined(recipe.operations[: place + 1], source, outcomes, outcome)
        _check_order(place, spec.op, outcome, outcomes, changed=outcome.checkpoint is not result)
        result = outcome.checkpoint
        outcomes += (outcome,)
    if result is not source:
        _check_result(result)
    return Plan(recipe, source, result, outcomes, compose([(outcome.promise, outcome.scope) for outcome in outcomes]))


def _check_order(place: int, op: str, outcome: Outcome, earlier: tuple[Outcome, ...], *, changed: bool) -> None:
    """An adapter is made for the base as it is then; nothing may change that base afterwards."""
    if not any(before.adapter for before in earlier):
        return
    if outcome.adapter:
        raise RecipeError(
            f"operations.{place}: {op}: a recipe makes one adapter; put the second into a recipe of its own"
        )
    if changed:
        raise RecipeError(
            f"operations.{place}: {op}: changes the base of the adapter made before it; put it before that"
        )


def _check_result(result: Checkpoint) -> None:
    """A skeleton built from the new config must have exactly the shapes of the result; every document must be readable."""
    dict(result.documents)
    try:
        account(result)
    except InputRejected as error:
        raise InputRejected(f"the planned result would not load: {error}") from error


def apply(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    overwrite: bool = False,
    link: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Plan, write into a staging directory, read it back, verify, and only then let the output appear.

    Raises:
        VerificationFailed: the written checkpoint does not keep its promise; nothing was committed.
        GraftkitError: see :mod:`graftkit.errors`; but for CommittedWithWarning, nothing was committed.
    """
    return execute(plan(recipe), overwrite=overwrite, link=link, progress=progress)


def execute(
    planned: Plan,
    *,
    overwrite: bool = False,
    link: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write exactly ``planned``; see :func:`apply`."""
    if device is not None and not (planned.recipe.verify.lens or planned.recipe.verify.signal):
        raise RecipeError("--device: only lens and signal run on it; add verify: {lens: true} or {signal: true}")
    if device is not None:
        from graftkit.verification.lens.setting import device_of

        device_of(device)
    output = Path(planned.recipe.output)
    total = planned.bytes_taken_over + planned.bytes_written
    refuse_output(output, source=planned.source.directory, overwrite=overwrite)
    require_space(output, (planned.bytes_written if link else total) + SPARE_BYTES)
    with Staging(output, source=planned.source.directory, overwrite=overwrite) as staging:
        _prepare(planned, progress)
        ledger = _write(planned, staging, link=link, progress=progress)
        tokenization = _check_tokenization(planned, staging.path)
        outputs = _check_outputs(planned, staging.path, progress)
        checks = (*_run_checks(planned, staging.path), *_look(planned, staging.path, device, progress))
        report = _report(planned, ledger, tokenization, outputs, checks)
        write_report(report, planned, staging.path)
        staging.commit()
    return report


def _prepare(planned: Plan, progress: Progress | None) -> None:
    """Let operations compute what takes long, before a byte is written."""
    for spec, outcome in zip(planned.recipe.operations, planned.outcomes, strict=True):
        if outcome.prepare is not None:
            what = f"prepare {spec.op}"
            outcome.prepare((lambda share, what=what: progress(what, share, 1.0)) if progress else lambda _: None)  # type: ignore[misc]


def _write(planned: Plan, staging: Staging, *, link: bool, progress: Progress | None) -> tuple[LedgerEntry, ...]:
    """Write base and adapter, each file being read back and compared while the next one is written."""
    total = planned.bytes_taken_over + planned.bytes_written
    allow = planned.recipe.allow_nonfinite
    write, compare = _counter(progress, "write", total), _counter(progress, "compare with the source", total)
    ledger: tuple[LedgerEntry, ...] = ()
    if planned.writes_base:
        with StructureCheck(planned.result, staging.path, allow_nonfinite=allow, progress=compare) as check:

            def written(path: Path) -> None:
                staging.written(path)
                check.shard(path)

            write_checkpoint(planned.source, planned.result, staging.path, link=link, progress=write, written=written)
            ledger = check.finish()
    if planned.adapter is not None:
        write_adapter(planned.adapter, staging.path / FOLDER, write)
        ledger += check_adapter(planned.adapter, staging.path / FOLDER, allow_nonfinite=allow, progress=compare)
    return ledger


def _counter(progress: Progress | None, what: str, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(what, done, total)

    return count


def _check_tokenization(planned: Plan, staged: Path) -> tuple[TokenizationReport, ...]:
    reports = []
    for outcome in planned.outcomes:
        if outcome.vocabulary is None:
            continue
        found = check_tokenization(
            planned.source.directory,
            staged,
            new=outcome.vocabulary.new_tokens,
            special=outcome.vocabulary.special,
            chat_template_changed=outcome.vocabulary.chat_template_changed,
        )
        _raise_first(found.failures)
        reports.append(found)
    return tuple(reports)


def _check_outputs(planned: Plan, staged: Path, progress: Progress | None) -> OutputsReport | None:
    if not planned.compares_outputs:
        return None
    vocabulary = next((outcome.vocabulary for outcome in planned.outcomes if outcome.vocabulary), None)
    found = compare_outputs(
        planned.source.directory,
        staged,
        vocabulary=vocabulary.change if vocabulary else None,
        kl=vocabulary.kl() if vocabulary and not planned.scope else None,
        seed=planned.recipe.seed,
        scope=planned.scope,
        paged=planned.paged,
        progress=(lambda what, share: progress(what, share, 1.0)) if progress else None,
    )
    _raise_first(found.failures)
    check_measured(planned.promise, found)
    return found


def _run_checks(planned: Plan, staged: Path) -> tuple[CheckReport, ...]:
    """Run the operations' own checks, in their order; most load models, as the comparison of outputs does."""
    wanted = planned.recipe.verify.outputs
    source = planned.source.directory
    adapter = staged / FOLDER if planned.adapter else None
    base = staged if planned.writes_base else source
    written = Written(source, base, adapter, planned.recipe.seed, planned.recipe.verify.outputs)
    found = []
    for outcome in planned.outcomes:
        for check in outcome.checks:
            if not (wanted or getattr(check, "reads_files_alone", False)):
                continue
            report = check(written)
            _raise_first(report.failures)
            found.append(report)
    return tuple(found)


def _look(planned: Plan, staged: Path, device: str | None, progress: Progress | None) -> tuple[CheckReport, ...]:
    """Look through the lens and at the signal, where the recipe asks and the source is what the result is compared with."""
    wanted = planned.recipe.verify
    if not (wanted.lens or wanted.signal or wanted.first_step) or Scope.NOTHING in planned.scope:
        return ()
    from graftkit.verification.first_step import compare_first_step
    from graftkit.verification.lens.lens import compare_lens
    from graftkit.verification.signal import compare_signal

    vocabulary = next((outcome.vocabulary for outcome in planned.outcomes if outcome.vocabulary), None)
    found: list[CheckReport] = []
    lens = functools.partial(compare_lens, paged=planned.paged)
    looks = ((lens, wanted.lens), (compare_signal, wanted.signal), (compare_first_step, wanted.first_step))
    for compare in (function for function, asked in looks if asked):
        report = compare(
            planned.source.directory,
            staged if planned.writes_base else planned.source.directory,
            vocabulary=vocabulary.change if vocabulary else None,
            seed=planned.recipe.seed,
            device=device,
            scope=planned.scope,
            adapter=staged / FOLDER if planned.adapter else None,
            progress=(lambda what, share: progress(what, share, 1.0)) if progress else None,
        )
        _raise_first(report.failures)
        found.append(report)
    return tuple(found)


def _raise_first(failures: Sequence[str]) -> None:
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise VerificationFailed(f"{failures[0]}{more}; nothing was written")


def _report(
    planned: Plan,
    ledger: tuple[LedgerEntry, ...],
    tokenization: tuple[TokenizationReport, ...],
    outputs: OutputsReport | None,
    checks: tuple[CheckReport, ...],
) -> Report:
    figures = {
        f"operations.{place}.{planned.recipe.operations[place].op}": dict(outcome.figures())
        for place, outcome in enumerate(planned.outcomes)
    }
    return Report(planned, ledger, tokenization, outputs, checks, figures)
