"""What the checks did not cover, in the words of the verdict: a line of its own in a table is easily missed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftkit.verification.checks import Finding
    from graftkit.verification.outputs import OutputsReport


def lost_coverage(outputs: OutputsReport | None, checks: Iterable[Finding]) -> tuple[str, ...]:
    """What the outputs lost of that which applies to the model, and what the other checks did not run; each named once."""
    lost = list(outputs.coverage.lost) if outputs is not None else []
    lost += [name for check in checks for name, result, _ in check.rows() if result == "not run"]
    return tuple(dict.fromkeys(lost))


def not_covered(lost: Sequence[str]) -> str:
    """The end of a verdict's line; empty where nothing was lost."""
    return f"; not covered: {', '.join(lost)}" if lost else ""
