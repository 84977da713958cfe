"""A comparison of two checkpoints as rows, as JSON, and as a page of the same kind as that of an applied recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.errors import plural
from graftkit.report.lost_coverage import lost_coverage, not_covered
from graftkit.report.page import render_page
from graftkit.report.unchecked import unchecked
from graftkit.report.versions import versions
from graftkit.verification.checks import Row
from graftkit.verification.promises import Scope

if TYPE_CHECKING:
    from graftkit.compare import Verification


def comparison_rows(found: Verification) -> Iterator[Row]:
    """``(check, result, figure)`` for each check between two checkpoints, in order."""
    if "report" in found.found and found.accounted is not None:
        yield Row("report", "failed" if found.found["report"] else "passed", found.accounted.figure)
    else:
        yield Row("report", "not compared", "none lies beside B")
    more = len(found.difference.tensors)
    more_words = ", one more differs" if more == 1 else f", {more:,} more differ" if more else ""
    figures = {
        "bytes": f"{plural(found.difference.equal, 'tensor')} equal" + more_words,
        "config": _values(len(found.difference.values)),
        "tokenizer": found.tokenization.figure()
        if found.tokenization
        else ""
        if found.pair.takes_ids
        else "no token ids",
    }
    for check, figure in figures.items():
        yield Row(
            check, "not run" if check not in found.found else "failed" if found.found[check] else "passed", figure
        )
    if found.outputs is None:
        yield Row("outputs", "not compared", _not_compared(found))
    else:
        yield from found.outputs.rows()
    for check_report in found.checks:
        yield from check_report.rows()


def _values(count: int) -> str:
    differ = "one value differs" if count == 1 else f"{count:,} values differ" if count else "no value differs"
    return f"{differ} in config and tokenizer files"


def lost_by(found: Verification) -> tuple[str, ...]:
    """The checks that were left out, and what the others did not cover of that which applies to the model."""
    not_run = ("outputs",) if found.cannot_run and "outputs" not in found.left_out else ()
    return (*found.left_out, *not_run, *lost_coverage(found.outputs, found.checks))


def comparison_verdict(found: Verification) -> str:
    """One line about a comparison that found nothing wrong: what was verified, and what was not covered."""
    return f"{found.verdict}{not_covered(lost_by(found))}"


def _not_compared(found: Verification) -> str:
    if "outputs" in found.found:
        return "they could not be made"
    if found.cannot_run:
        return found.cannot_run
    nothing = found.accounted is not None and Scope.NOTHING in found.accounted.scope
    return "A is not what B was promised to do as" if nothing else "--no-outputs"


def comparison_json(before: str, after: str, found: Verification) -> dict[str, Any]:
    """The comparison in the form of a report, with ``comparison`` in the place of recipe and promise."""
    report = {
        "graftkit": 1,
        "comparison": {
            "after": after,
            "failures": list(found.failures),
            "equal": found.difference.equal,
            "verdict": comparison_verdict(found),
        },
        "source": {"name": before},
        "versions": versions(),
        "changes": {
            "tensors": [dataclasses.asdict(tensor) for tensor in found.difference.tensors],
            "values": [dataclasses.asdict(value) for value in found.difference.values],
        },
        "tokenization": [dataclasses.asdict(found.tokenization)] if found.tokenization else [],
        "outputs": found.outputs.to_json() if found.outputs else None,
        "outputs_not_compared": "" if found.outputs else _not_compared(found),
        "checks": {check.name: check.to_json() for check in found.checks},
        "not_covered": list(lost_by(found)),
        "checked": [row._asdict() for row in comparison_rows(found)],
    }
    return {**report, "not_checked": [{"what": what, "why": why} for what, why in unchecked(report)]}


def write_comparison(before: str, after: str, found: Verification, page: Path) -> None:
    """Write the page of a comparison."""
    page.write_text(render_page(comparison_json(before, after, found)), encoding="utf-8")
