"""Old text that splits in another way, because a new token stands in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graftkit.errors import plural
from graftkit.report.page.markup import Markup, joined, tag
from graftkit.report.page.numbers import count
from graftkit.report.page.section import Section, chip, table

#: Longer texts are cut.
_LONGEST = 80


def splits(report: Mapping[str, Any]) -> Section | None:
    """A table of texts with their pieces before and after."""
    reports = report.get("tokenization") or ()
    if not reports:
        return None
    rows = [_row(item) for found in reports for item in found["differences"]]
    tried = sum(found["covered"].get("probe_texts", 0) for found in reports)
    differing = sum(found["covered"].get("texts_split_differently", 0) for found in reports)
    ids = max(found["covered"].get("old_ids", 0) for found in reports)
    lead = f"All {count(ids)} old ids keep their tokens. " + (
        f"{count(differing)} of {plural(tried, 'probe text')} split in another way, each because of a plain new token."
        if differing
        else f"{plural(tried, 'probe text')} split as before."
    )
    notes = [tag("li", note) for found in reports for note in found["notes"]]
    columns = [("text", ""), ("before", ""), ("after", ""), ("because of", "")]
    body = joined(table(columns, rows, "stack") if rows else None, tag("ul", *notes, class_="notes") if notes else None)
    return Section("tokenization", "Tokenization", lead, body)


def _row(item: Mapping[str, Any]) -> tuple[object, ...]:
    probe = item["probe"]
    shown = probe if len(probe) <= _LONGEST else f"{probe[:_LONGEST]}…"
    cause = chip(item["token"]) if item["token"] is not None else ""
    return tag("q", shown), _pieces(item["before"], "before"), _pieces(item["after"], "after"), cause


def _pieces(pieces: Sequence[str], side: str) -> Markup:
    more = tag("span", "…") if len(pieces) > 12 else None
    return tag("span", *(chip(piece, side) for piece in pieces[:12]), more, class_="pieces")
