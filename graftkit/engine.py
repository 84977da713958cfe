"""Apply: write what was planned into a staging directory, verify it there, and only then let the output appear."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from graftkit.blame import blaming_inputs, stamps_before
from graftkit.checkpoint.adapter import FOLDER, AdapterPlace, write_adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.inputs import input_files
from graftkit.checkpoint.staging import Staging, refuse_output, require_space
from graftkit.checkpoint.stamps import require_unchanged
from graftkit.checkpoint.stores.upload import refuse_store_output, uploaded
from graftkit.checkpoint.weights_on_hub import bytes_on_hub, download_weights
from graftkit.checkpoint.write import file_sizes, write_checkpoint
from graftkit.errors import RecipeError, VerificationFailed
from graftkit.operations.base import Outcome, correspondence_of
from graftkit.planned import Plan
from graftkit.planning import plan
from graftkit.recipe import Recipe
from graftkit.recipe_file.paths import is_url
from graftkit.report.report import Report, write_report
from graftkit.running.place import Place
from graftkit.share import WHOLE, Share
from graftkit.verification.checks import Finding
from graftkit.verification.promises import Scope
from graftkit.verification.registry import verify
from graftkit.verification.structural import LedgerEntry, StructureCheck, check_adapter
from graftkit.verification.subject import NewTokens, Subject, is_longer, is_recast, places
from graftkit.verification.weights.dcp_form import made_of_plain
from graftkit.verification.weights.ties import lost_ties

__all__ = ["WHOLE", "Plan", "Progress", "apply", "execute", "plan"]

#: ``(what is being done, bytes or share done, bytes or share in all)``.
Progress = Callable[[str, float, float], None]

#: Room for tokenizer, config, report and file system overhead, beside the tensors.
SPARE_BYTES = 32 << 20


def apply(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    overwrite: bool = False,
    link: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Plan, write into a staging directory, read it back, verify, and only then let the output appear.

    Raises:
        VerificationFailed: the written checkpoint does not keep its promise; nothing was committed.
        GraftkitError: see :mod:`graftkit.errors`; but for CommittedWithWarning, nothing was committed.
    """
    told = (lambda what, share: progress(what, share, 1.0)) if progress else None
    planned = plan(recipe, allow_pickle=allow_pickle, progress=told)
    return execute(planned, overwrite=overwrite, link=link, progress=progress)


def execute(
    planned: Plan,
    *,
    overwrite: bool = False,
    link: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
    committed: Callable[[Path | str], None] | None = None,
    share: Share = WHOLE,
) -> Report:
    """Write exactly ``planned``; see :func:`apply`. ``committed`` is called with the output in the moment in which it appears.

    ``share`` says which weight files this process writes, where ranks write the result together.
    """
    if device is not None and not (planned.recipe.verify.lens or planned.recipe.verify.signal):
        raise RecipeError("--device: only lens and signal run on it; add verify: {lens: true} or {signal: true}")
    if device is not None:
        from graftkit.verification.lens.setting import device_of

        device_of(device)
    if not is_url(planned.recipe.output):
        return _execute(
            planned, Path(planned.recipe.output), overwrite=overwrite, link=link, device=device, progress=progress,
            committed=committed, share=share,
        )  # fmt: skip
    refuse_store_output(planned.recipe.output, base=planned.source.name, overwrite=overwrite)
    with uploaded(planned.recipe.output) as folder:
        report = _execute(planned, folder, link=link, device=device, progress=progress, share=share)
    if committed is not None:
        committed(planned.recipe.output)
    return report


def _execute(
    planned: Plan,
    output: Path,
    *,
    link: bool,
    device: str | None,
    progress: Progress | None,
    overwrite: bool = False,
    committed: Callable[[Path], None] | None = None,
    share: Share,
) -> Report:
    """Write ``planned`` to ``output``, on this machine."""
    total = planned.bytes_taken_over + planned.bytes_written
    refuse_output(output, source=planned.source.directory, overwrite=overwrite)
    again = total if planned.recipe.output_format == "dcp" else 0
    require_space(output, (planned.bytes_written if link else total) + again + SPARE_BYTES)
    planned, source = with_weights(planned, progress), planned.source.directory
    stamps = stamps_before(planned)
    with Staging(output, source=source, overwrite=overwrite) as staging:
        files = share.begin(planned, staging) if planned.writes_base else ()
        prepare(planned, progress)
        with blaming_inputs(planned, stamps):
            ledger = _write(planned, staging, files, share, link=link, progress=progress)
            crew = share.crew(planned) if planned.writes_base else None
            subject = replace(subject_of(planned, staging.path, device, progress), crew=crew)
            findings = tuple(run_checks(planned, subject))
            by_ranks = None if crew is None else share.dismiss()
            if planned.recipe.output_format == "dcp":
                findings = (*findings, made_of_plain(staging.path))
                _raise_first(findings[-1].failures)
        report = Report(planned, ledger, findings, figures_of(planned), by_ranks)
        write_report(report, planned, staging.path)
        require_unchanged(source, stamps)
        staging.commit(committed)
    return report


def with_weights(planned: Plan, progress: Progress | None) -> Plan:
    """The plan with its base's weights on this machine, where it reads any of them."""
    if not bytes_on_hub(planned.source) or not planned.reads_weights:
        return planned
    download_weights(planned.source, functools.partial(progress, "download") if progress else None)
    return replace(planned, inputs=input_files(planned.recipe.plain_fields()))


def prepare(planned: Plan, progress: Progress | None) -> None:
    """Let operations compute what takes long, before a byte is written."""
    for place, (spec, outcome) in enumerate(zip(planned.recipe.operations, planned.outcomes, strict=True)):
        if outcome.prepare is not None:
            what = f"prepare {spec.op}"
            try:
                outcome.prepare((lambda share, what=what: progress(what, share, 1.0)) if progress else lambda _: None)  # type: ignore[misc]
            except RecipeError as error:
                raise error.in_operation(place, spec.op) from error


def _write(
    planned: Plan, staging: Staging, files: Collection[str], share: Share, *, link: bool, progress: Progress | None
) -> tuple[LedgerEntry, ...]:
    """Write base and adapter, each file being read back and compared while the next one is written."""
    total = bytes_of(planned, files) + (planned.adapter.nbytes if planned.adapter else 0)
    write, compare = (share.watched(counter(progress, what, total)) for what in ("write", "compare with the source"))
    ledger: tuple[LedgerEntry, ...] = ()
    if planned.writes_base:
        with written_files(planned, staging, files, link=link, write=write, compare=compare) as check:
            ledger = share.finish(planned, check)
        if planned.adapter is None:  # one that trains one side of a pair has its base untied
            meant = frozenset[tuple[str, str]]().union(*(outcome.untied for outcome in planned.outcomes))
            _raise_first(tuple(lost_ties(planned.source, Checkpoint.open(str(staging.path)), meant)))
    if planned.adapter is not None:
        write_adapter(planned.adapter, staging.path / FOLDER, write)
        allow = planned.recipe.allow_nonfinite
        ledger += check_adapter(planned.adapter, staging.path / FOLDER, allow_nonfinite=allow, progress=compare)
    return ledger


def bytes_of(planned: Plan, files: Collection[str]) -> int:
    """Bytes of the tensors in these weight files of the result."""
    sizes = file_sizes(planned.result)
    return sum(sizes[file] for file in files)


@contextlib.contextmanager
def written_files(
    planned: Plan, staging: Staging, files: Collection[str], *, documents: bool = True, link: bool = False,
    write: Callable[[int], None] | None = None, compare: Callable[[int], None] | None = None,
) -> Iterator[StructureCheck]:  # fmt: skip
    """Write these weight files of the base, and with ``documents`` all others; yield the check that reads them back meanwhile."""
    allow = planned.recipe.allow_nonfinite
    with StructureCheck(planned.result, staging.path, allow_nonfinite=allow, progress=compare) as check:

        def written(path: Path) -> None:
            staging.written(path)
            check.shard(path)

        write_checkpoint(
            planned.source, planned.result, staging.path, files=files, documents=documents, link=link, progress=write,
            written=written,
        )  # fmt: skip
        yield check


def counter(progress: Progress | None, what: str, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(what, done, total)

    return count


def run_checks(planned: Plan, subject: Subject) -> Iterator[Finding]:
    """Run every check on what was made, up to the first that fails.

    Raises:
        VerificationFailed: a check failed.
    """
    own = [
        (check, behind(subject, outcome, planned.outcomes[place + 1 :]))
        for place, outcome in enumerate(planned.outcomes)
        for check in outcome.checks
    ]
    for finding in verify(subject, own):
        _raise_first(finding.failures)
        yield finding


def behind(subject: Subject, outcome: Outcome, later: Sequence[Outcome]) -> Subject:
    """What the own check of the operation with this ``outcome`` looks at, before the operations ``later``."""
    scope = functools.reduce(operator.or_, (one.scope for one in later), Scope.EVERYTHING)
    old, new = (one.checkpoint.tensors for one in (outcome, *later[-1:])) if later else ({}, {})
    changed = frozenset(name for name in {**old, **new} if old.get(name) is not new.get(name))
    return replace(subject, later=correspondence_of(later), later_scope=scope, changed_later=changed)


def subject_of(planned: Plan, staged: Path, device: str | None = None, progress: Progress | None = None) -> Subject:
    """What the checks of a plan look at, written to ``staged``."""
    as_opened = bytes_on_hub(planned.source) or not planned.source.loads_from_files
    source: Place = planned.source if as_opened else planned.source.directory
    result, adapter = staged if planned.writes_base else source, staged / FOLDER if planned.adapter else None
    return subject_at(planned, source, result, adapter, device=device, progress=progress)


def subject_at(
    planned: Plan,
    source: Place,
    result: Place,
    adapter: AdapterPlace | None,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> Subject:
    """What the checks of a plan look at, wherever it was made."""
    vocabulary, wanted = planned.vocabulary, planned.recipe.verify
    tokens = None
    if vocabulary is not None:
        new, learned = vocabulary.new_tokens, vocabulary.learned
        tokens = NewTokens(
            {token: index for token, index in new.items() if token not in learned},
            vocabulary.special,
            vocabulary.chat_template_changed,
            vocabulary.eos_may_pad,
            vocabulary.renamed,
            places((change.document, change.place) for change in planned.values if change.new is None),
            vocabulary.replaced,
            {token: index for token, index in new.items() if token in learned},
            is_longer((change.document, change.place) for change in planned.values),
            vocabulary.entered,
        )
    return Subject(
        source,
        result,
        planned.promise,
        adapter=adapter,
        scope=planned.scope,
        correspondence=planned.correspondence,
        added=planned.added,
        recast=is_recast(planned.source.config, planned.result.config),
        tokens=tokens,
        kl=vocabulary.kl if vocabulary else lambda: None,
        wanted=frozenset(name for name in ("lens", "signal", "first_step") if getattr(wanted, name)),
        not_run=planned.cannot_run if wanted.outputs else "verify.outputs is off",
        seed=planned.recipe.seed,
        device=device,
        paged=planned.paged,
        progress=(lambda what, share: progress(what, share, 1.0)) if progress else None,
    )


def _raise_first(failures: Sequence[str]) -> None:
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise VerificationFailed(f"{failures[0]}{more}; nothing was written")


def figures_of(planned: Plan) -> dict[str, Any]:
    """What the operations measured on the way, by their place."""
    return {
        f"operations.{place}.{planned.recipe.operations[place].op}": dict(outcome.figures())
        for place, outcome in enumerate(planned.outcomes)
    }
