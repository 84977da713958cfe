"""Tokens in text for a terminal: new and renamed ones of a plan, and those whose rows were never trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graftkit.report.terminal.tables import Table, table, text

if TYPE_CHECKING:
    from graftkit.inspection import Inspection, NeverTrained
    from graftkit.planned import Plan

#: How many tokens are shown, and how many texts that new tokens split; all stand in graft_report.json, or behind --json.
TOKENS = 10

#: Why a row was never trained, in words.
REASONS = {
    "zero": "zero",
    "near zero": "next to zero",
    "duplicate": "equal to an earlier row",
    "initial": "special tokens as long as initial values, and in no common direction",
}


def token_table(plan: Plan, *, verbose: bool) -> tuple[Table, int]:
    """New and renamed tokens with their ids, and how many are not shown, which are none where ``verbose``."""
    rows = [(str(index), "-", text(token)) for token, index in plan.new_tokens.items()]
    ids = plan.vocabulary.renamed_ids if plan.vocabulary else {}
    rows += [(str(ids[new]), text(old), text(new)) for old, new in plan.renamed_tokens.items()]
    renamed = bool(plan.renamed_tokens)
    title = "new and renamed tokens" if renamed and plan.new_tokens else "renamed tokens" if renamed else "new tokens"
    found = table(title, "id", *(("before",) if renamed else ()), "token")
    listed = rows if verbose else rows[:TOKENS]
    for index, before, token in listed:
        found.add_row(index, *((before,) if renamed else ()), token)
    return found, len(rows) - len(listed)


def never_trained(found: Inspection) -> Iterator[str]:
    """Yield for each table and reason the tokens whose rows were never trained, with their norms."""
    for item in found.tables:
        by_reason: dict[str, list[NeverTrained]] = {}
        for row in item.never_trained:
            by_reason.setdefault(row.reason, []).append(row)
        for reason, rows in by_reason.items():
            low, high = (f"{limit(row.norm for row in rows):.3g}" for limit in (min, max))
            norms = f"norm {low}" if low == high else f"norms {low} to {high}"
            shown = ", ".join(f"{row.token} ({row.id})" for row in rows[:TOKENS])
            more = f", … and {len(rows) - TOKENS:,} more (--json)" if len(rows) > TOKENS else ""
            yield f"{item.name}: {REASONS[reason]}, {norms}: {shown}{more}"
