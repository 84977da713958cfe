"""The ledger: every tensor with where it lies, its digest, and how many of its bytes are the source's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graftkit.errors import plural
from graftkit.report.page.markup import data, joined, tag
from graftkit.report.page.numbers import shape
from graftkit.report.page.section import Section
from graftkit.report.size import size

#: So many hexadecimal digits of a digest are on the page; the report's JSON has all 64.
DIGITS = 16

#: So many dropped tensors are named.
FEW = 8

#: The columns: heading, class.
_COLUMNS = (("tensor", "m name"), ("change", ""), ("shape", "n m"), ("dtype", "m"), ("bytes", "n"), ("shard", "m shard"),
            ("SHA-256", "m"))  # fmt: skip


def ledger(report: Mapping[str, Any]) -> Section | None:
    """A table that the page's script fills, filters and turns over; thousands of rows are one line of JSON each."""
    entries = report.get("ledger")
    if not entries:
        return None
    kept = sum(entry["source_bytes"] for entry in entries)
    made = sum(entry["produced_bytes"] for entry in entries)
    changed = sum(entry["produced_bytes"] > 0 for entry in entries)
    lead = (
        f"{plural(len(entries), 'tensor')}: {len(entries) - changed:,} byte for byte the source's, {changed:,} with new values."
        f" {size(kept)} were compared with the source, {size(made)} are new."
    )
    if not changed:
        lead = f"{plural(len(entries), 'tensor')}, {size(kept)}: all byte for byte the source's."
    changes = (report.get("changes") or {}).get("tensors") or ()
    dropped = [f"{change['name']} ({change.get('operation', '')})" for change in changes if change["kind"] == "dropped"]
    if dropped:
        lead += (
            f" Dropped: {', '.join(dropped[:FEW])}{f' and {len(dropped) - FEW} more' if len(dropped) > FEW else ''}."
        )
    rows = data("ledger-rows", _packed(entries, {change["name"]: change.get("operation", "") for change in changes}))
    return Section("tensors", "Tensors", lead, joined(_controls(), _frame(), rows))


def _controls() -> Any:
    search = tag("input", type="search", id="ledger-filter", placeholder="filter by name, operation, dtype, shape or shard",
                 aria_label="filter tensors", autocomplete="off", spellcheck="false")  # fmt: skip
    boxes = [
        tag("button", label, type="button", data_show=word, aria_pressed="true" if word == "all" else "false")
        for word, label in (("all", "all"), ("changed", "new values"), ("kept", "kept"))
    ]
    return tag("div", search, tag("div", *boxes, class_="segments", id="ledger-show"), class_="controls")


def _frame() -> Any:
    heads = [
        tag(
            "th", tag("button", name, type="button", data_sort=place), class_=css or None, scope="col", aria_sort="none"
        )
        for place, (name, css) in enumerate(_COLUMNS)
    ]
    grid = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", id="ledger-body"), class_="ledger")
    pager = tag(
        "div",
        tag("span", id="ledger-count", aria_live="polite"),
        tag("span", tag("button", "previous", type="button", id="ledger-back"),
            tag("button", "next", type="button", id="ledger-next")),
        class_="pager",
    )  # fmt: skip
    absent = tag("noscript", tag("p", "The list needs JavaScript; graft_report.json has it as well.", class_="note"))
    return joined(tag("div", grid, class_="scroll"), pager, absent)


def _packed(entries: Sequence[Mapping[str, Any]], operations: Mapping[str, str]) -> dict[str, Any]:
    """Rows of ``[name, source bytes, produced bytes, operation, shape, dtype, shard, digest]``; repeated words stand once."""
    words: dict[str, dict[str, int]] = {"operations": {}, "shapes": {}, "dtypes": {}, "shards": {}}

    def place(kind: str, word: str) -> int:
        return words[kind].setdefault(word, len(words[kind]))

    rows = [
        [
            entry["name"], entry["source_bytes"], entry["produced_bytes"],
            place("operations", operations.get(entry["name"], "")), place("shapes", shape(entry["shape"])),
            place("dtypes", entry["dtype"]), place("shards", entry["shard"]), entry["sha256"][:DIGITS],
        ]
        for entry in entries
    ]  # fmt: skip
    return {**{kind: list(found) for kind, found in words.items()}, "rows": rows}
