"""Every check with its result, as the terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.report.page.markup import joined, tag
from graftkit.report.page.section import MOST, Section, table

#: Words of a result that ask for a second look.
_DOUBT = ("not ", "failed", "outside")


def checks(report: Mapping[str, Any]) -> Section | None:
    """The table of checks."""
    rows = report.get("checked")
    if not rows:
        return None
    shown = [(row["check"], _result(row["result"]), row["figure"]) for row in rows]
    failed = any(row["result"] == "failed" for row in rows)
    lead = "A check failed." if failed else "Everything that was looked at, in order. Nothing failed."
    return Section(
        "checks", "Checks", lead, table([("check", ""), ("result", ""), ("figure", "")], shown, "checks", MOST)
    )


def _result(word: str) -> object:
    doubtful = word.startswith(_DOUBT) or word.endswith("outside")
    plain = word in ("measured", "run", "") or word.startswith(("rho ", "max ")) or word[:1].isdigit()
    kind = "doubt" if doubtful else "plain" if plain else "good"
    return tag("span", joined(word), class_=f"result {kind}")
