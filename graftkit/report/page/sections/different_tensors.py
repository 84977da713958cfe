"""The tensors that differ between two checkpoints which were compared without a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.errors import plural
from graftkit.report.page.numbers import number
from graftkit.report.page.section import Section, table


def different_tensors(report: Mapping[str, Any]) -> Section | None:
    """A table of them, with the old rows that changed and by how much at most."""
    if "comparison" not in report or not report["changes"]["tensors"]:
        return None
    found = report["changes"]["tensors"]
    rows = [
        (
            item["name"], item["kind"], item["old"] or "–", item["new"] or "–", str(item["rows"]),
            "–" if item["largest"] is None else number(item["largest"]),
        )
        for item in found
    ]  # fmt: skip
    columns = [
        ("name", "m"),
        ("change", ""),
        ("before", "m"),
        ("after", "m"),
        ("old rows changed", "n"),
        ("max |Δ|", "n"),
    ]
    lead = f"{plural(len(found), 'tensor')} of {len(found) + report['comparison']['equal']:,}; the others are equal bit for bit."
    return Section("tensors", "Tensors that differ", lead, table(columns, rows, "stack"))
