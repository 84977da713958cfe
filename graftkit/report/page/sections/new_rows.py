"""New rows beside the trained rows of their table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graftkit.errors import plural
from graftkit.report.page.markup import Markup, joined, tag
from graftkit.report.page.numbers import count, number
from graftkit.report.page.plots import BEFORE, Bars, Mark, figure, histogram
from graftkit.report.page.section import Section, chip, table

#: Two rows of a larger cosine are the same row, but for the rounding of the cosine.
_SAME = 1 - 1e-5


def new_rows(report: Mapping[str, Any]) -> Section | None:
    """For each table a histogram of norms with the new rows marked, and their nearest old tokens."""
    tables = dict(_tables(report.get("figures") or {}))
    if not tables:
        return None
    parts = [_table(name, found) for name, found in tables.items()]
    return Section("rows", "New rows against old rows", _lead(tables), joined(*parts))


def _tables(figures: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for operation in figures.values():
        for name, found in operation.items() if isinstance(operation, Mapping) else ():
            if isinstance(found, Mapping) and found.get("new_rows", {}).get("rows"):
                yield name, found["new_rows"]


def _lead(tables: Mapping[str, Mapping[str, Any]]) -> str | list[object]:
    """What is most out of the ordinary of each table, if anything is."""
    sentences: list[object] = []
    for name, found in tables.items():
        rows = found["rows"]
        outside = sum(row["rank"] in (0.0, 1.0) for row in rows)
        same = sum(row["twin"] is not None and float(row["twin"]) > _SAME for row in rows)
        odd = []
        if outside:
            odd.append(f"{outside} of {len(rows)} have a norm below or above that of every trained row")
        if same:
            odd.append(f"{same} equal another new row, so only training can tell them apart")
        if odd:
            sentences.append(joined(tag("code", name), f": {'; '.join(odd)}."))
    return sentences or "Every new row has a norm like those of trained rows, and no two are the same."


def _table(name: str, found: Mapping[str, Any]) -> Markup:
    old, rows = found["old_norms"], found["rows"]
    bars = Bars("old rows", BEFORE, float(old["low"]), float(old["high"]), old["counts"])
    picture = histogram(bars, list(_marks(rows)), name="Euclidean norm of a row")
    role = "input and output, tied" if found.get("tied") else found["role"]
    caption = f"{role} embedding; {count(old['count'])} old rows, each blue line a new one."
    quantiles = old["quantiles"]
    spread = tag(
        "p",
        f"Old rows: median {number(quantiles['0.5'])}, 5 to 95 % in {number(quantiles['0.05'])} to {number(quantiles['0.95'])}.",
        class_="note",
    )
    left = figure(tag("code", name), joined(picture), caption)
    hidden = found["new_norms"]["count"] - len(rows)
    more = tag("p", f"{plural(hidden, 'new row')} more, not looked at one by one.", class_="note") if hidden else None
    columns = [("new token", ""), ("norm", "n"), ("rank", "n"), ("nearest, by cosine", "")]
    body = table(columns, [_row(row) for row in rows], "stack")
    return tag("div", tag("div", left, spread), tag("div", body, more, class_="beside"), class_="plots rows")


def _marks(rows: Sequence[Mapping[str, Any]]) -> Iterator[Mark]:
    """One mark for all rows of the same norm."""
    by_norm: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_norm.setdefault(f"{float(row['norm']):.4g}", []).append(row)
    for same in by_norm.values():
        names = [_name(row) for row in same[:4]]
        more = f" and {len(same) - 4} more" if len(same) > 4 else ""
        yield Mark(float(same[0]["norm"]), f"{', '.join(names)}{more}: {number(same[0]['norm'])}")


def _name(row: Mapping[str, Any]) -> str:
    return str(row["id"] if row["token"] is None else row["token"])


def _row(row: Mapping[str, Any]) -> tuple[object, ...]:
    token = chip(row["token"]) if row["token"] is not None else f"padding row {row['id']}"
    near = [
        tag("span", chip(_name(n)), tag("span", f"{float(n['cosine']):.2f}", class_="cosine"), class_="near")
        for n in row["neighbours"]
    ]
    return token, number(row["norm"]), f"{100 * float(row['rank']):.0f} %", joined(*near)
