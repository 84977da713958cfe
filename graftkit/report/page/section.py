"""What a section of the page is: a pure function from the report's JSON to a section, or to nothing where it has no figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftkit.report.page.markup import Markup, joined, tag
from graftkit.report.page.numbers import count

#: So many rows of a table are open; the others fold away.
OPEN = 12

#: And so many are on the page at all; the report's JSON has every one.
MOST = 240


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a sentence or a few that say what was found, and the figures. ``key`` is its anchor and its short name."""

    key: str
    title: str
    lead: str | Sequence[object]
    body: Markup

    def html(self) -> Markup:
        """The section as an element of the page."""
        sentences = [self.lead] if isinstance(self.lead, str) else self.lead
        head = tag("header", tag("h2", self.title), *(tag("p", said, class_="lead") for said in sentences if said))
        return tag("section", head, self.body, id=self.key)


#: Renders the section, or returns None where the report has no figures for it.
Render = Callable[[Mapping[str, Any]], Section | None]


def table(
    columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[object]], kind: str = "", shown: int = OPEN
) -> Markup:
    """A table of ``(heading, class)`` columns; class ``n`` aligns numbers, ``m`` is monospaced. Long ones fold away.

    On a phone the rows of a table of the ``kind`` stack become blocks, each value behind its heading.
    """
    head = tag("thead", tag("tr", *(tag("th", name, class_=css or None, scope="col") for name, css in columns)))
    made = [
        tag(
            "tr",
            *(
                tag("td", cell, class_=css or None, data_label=name)
                for cell, (name, css) in zip(row, columns, strict=True)
            ),
        )
        for row in rows[:MOST]
    ]
    first = tag("div", tag("table", head, tag("tbody", *made[:shown]), class_=kind or None), class_="scroll")
    if len(made) <= shown:
        return first
    rest = tag("div", tag("table", head, tag("tbody", *made[shown:]), class_=kind or None), class_="scroll")
    more = f"{count(len(rows) - shown)} more"
    missing = (
        tag("p", f"{count(len(rows) - MOST)} more in graft_report.json", class_="note") if len(rows) > MOST else None
    )
    return joined(first, tag("details", tag("summary", more), rest, missing))


def chip(value: object, kind: str = "") -> Markup:
    """A token or a name, set apart from the text around it."""
    return tag("code", value, class_=f"chip {kind}".strip())
