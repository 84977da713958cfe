"""Every value that changed in config, generation config and tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from graftkit.errors import plural
from graftkit.report.page.markup import joined, tag
from graftkit.report.page.section import Section, chip, table

#: Longer values are cut.
_LONGEST = 160


def changes(report: Mapping[str, Any]) -> Section | None:
    """A table of places with their values before and after."""
    values = (report.get("changes") or {}).get("values")
    if not values:
        return None
    rows = [(v["document"], v["place"], _value(v["old"]), _value(v["new"])) for v in values]
    files = len({v["document"] for v in values})
    lead = f"{plural(len(values), 'value')} in {plural(files, 'file')}; everything else is the source's."
    columns = [("file", "m"), ("place", "m"), ("before", "m old"), ("after", "m")]
    return Section("config", "Config and tokenizer", lead, table(columns, rows, "values stack"))


def _value(value: object) -> object:
    if value is None:
        return "–"
    if isinstance(value, Mapping) and {"id", "content"} <= value.keys():
        flags = ", ".join(name for name, flag in value.items() if flag is True)
        return joined(chip(value["content"]), tag("span", f"{value['id']} {flags}", class_="flag"))
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
