"""How the signal travels through the layers, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.report.page.markup import joined, tag
from graftkit.report.page.plots import AFTER, BEFORE, Band, Series, by_layer, figure, legend
from graftkit.report.page.section import Section

_KEYS = (("band-key", "source’s texts"), (BEFORE, "source"), (AFTER, "result"))

#: A figure that ranges over more than this factor is shown on a logarithmic axis.
_WIDE = 8


def signal(report: Mapping[str, Any]) -> Section | None:
    """One small plot for each figure, source and result overlaid; layers that leave the source's band are ringed."""
    found = (report.get("checks") or {}).get("signal")
    if not found or not found.get("figures"):
        return None
    plots = tag("div", *(_plot(item) for item in found["figures"]), class_="plots")
    keys = legend(_KEYS)
    note = f"{_ran(found)} in {found['dtype']}; gradients are of the {found['loss']}."
    added = found["new_blocks"]
    more = (
        f" New blocks: {', '.join(added[:8])}{f' and {len(added) - 8} more' if len(added) > 8 else ''}."
        if added
        else ""
    )
    return Section(
        "signal",
        "Signal before and after",
        found["verdict"],
        joined(keys, plots, tag("p", note, more, class_="note below")),
    )


def _plot(item: Mapping[str, Any]) -> Any:
    lines = [Series("source", BEFORE, item["before"]), Series("result", AFTER, item["after"])]
    values = [v for key in ("before", "after", "low", "high") for v in item[key] if v]
    log = item["log"] and max(values, default=1.0) > _WIDE * min(values, default=1.0) > 0
    picture = by_layer(lines, log=log, marked=item["outside"], band=Band(item["low"], item["high"]))
    title = joined(item["title"], tag("small", item["stack"]) if item["stack"] else None)
    return figure(title, picture, f"{item['caption'][:1].upper()}{item['caption'][1:]}.")


def _ran(found: Mapping[str, Any]) -> str:
    unit = found.get("unit", "tokens")
    return f"{found['texts']} texts, {found['tokens']} tokens" if unit == "tokens" else f"{found['texts']} {unit}"
