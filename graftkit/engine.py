"""Apply: write what was planned into a staging directory, verify it there, and only then let the output appear."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftkit.checkpoint.adapter import FOLDER, write_adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.staging import Staging, refuse_output, require_space
from graftkit.checkpoint.write import write_checkpoint
from graftkit.errors import RecipeError, VerificationFailed
from graftkit.operations import Written
from graftkit.operations.base import vocabulary_of
from graftkit.planning import Plan, plan
from graftkit.recipe import Recipe
from graftkit.report.report import Report, write_report
from graftkit.verification.checks import CheckReport, LeftOut
from graftkit.verification.composition import check_measured
from graftkit.verification.outputs import OutputsReport, compare_outputs
from graftkit.verification.promises import Scope
from graftkit.verification.structural import LedgerEntry, StructureCheck, check_adapter
from graftkit.verification.ties import lost_ties
from graftkit.verification.tokenization import TokenizationReport, check_tokenization

__all__ = ["Plan", "Progress", "apply", "execute", "plan"]

#: ``(what is being done, bytes or share done, bytes or share in all)``.
Progress = Callable[[str, float, float], None]

#: Room for tokenizer, config, report and file system overhead, beside the tensors.
SPARE_BYTES = 32 << 20


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
    for place, (spec, outcome) in enumerate(zip(planned.recipe.operations, planned.outcomes, strict=True)):
        if outcome.prepare is not None:
            what = f"prepare {spec.op}"
            try:
                outcome.prepare((lambda share, what=what: progress(what, share, 1.0)) if progress else lambda _: None)  # type: ignore[misc]
            except RecipeError as error:
                raise error.in_operation(place, spec.op) from error


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
        if planned.adapter is None:  # one that trains one side of a pair has its base untied
            _raise_first(tuple(lost_ties(planned.source, Checkpoint.open(str(staging.path)))))
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
    vocabulary = planned.vocabulary
    if vocabulary is None:
        return ()
    found = check_tokenization(
        planned.source.directory,
        staged,
        new=vocabulary.new_tokens,
        special=vocabulary.special,
        chat_template_changed=vocabulary.chat_template_changed,
    )
    _raise_first(found.failures)
    return (found,)


def _check_outputs(planned: Plan, staged: Path, progress: Progress | None) -> OutputsReport | None:
    if not planned.compares_outputs:
        return None
    vocabulary = planned.vocabulary
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
    found = []
    for place, outcome in enumerate(planned.outcomes):
        later = vocabulary_of(planned.outcomes[place + 1 :])
        change = later.change if later else None
        written = Written(source, base, adapter, planned.recipe.seed, planned.recipe.verify.outputs, change)
        for check in outcome.checks:
            if not (wanted or getattr(check, "reads_files_alone", False)):
                continue
            report = check(written)
            _raise_first(report.failures)
            found.append(report)
    return tuple(found)


def _look(planned: Plan, staged: Path, device: str | None, progress: Progress | None) -> tuple[CheckReport, ...]:
    """Look through the lens, at the signal and at the first step, as the recipe asks.

    Where the source is not what the result is compared with, only the first step of what is new is left to look at.
    """
    wanted = planned.recipe.verify
    if not (wanted.lens or wanted.signal or wanted.first_step):
        return ()
    from graftkit.verification.first_step import OTHER_SOURCE, compare_first_step
    from graftkit.verification.lens.lens import compare_lens
    from graftkit.verification.signal import compare_signal

    vocabulary = planned.vocabulary
    found: list[CheckReport] = []
    lens = functools.partial(compare_lens, paged=planned.paged)
    nothing = Scope.NOTHING in planned.scope
    asked = tuple(name for name in ("lens", "signal") if getattr(wanted, name))
    if nothing and asked:
        found.append(LeftOut(asked, OTHER_SOURCE))
    looks = (
        (lens, wanted.lens and not nothing),
        (compare_signal, wanted.signal and not nothing),
        (compare_first_step, wanted.first_step),
    )
    for compare in (function for function, runs in looks if runs):
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
