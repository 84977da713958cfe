"""How the signal travels through the layers, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.report.page.markup import tag
from graftkit.report.page.plots import AFTER, BEFORE, Series, by_layer, figure
from graftkit.report.page.section import Section

_KEYS = ((BEFORE, "source"), (AFTER, "result"))


def signal(report: Mapping[str, Any]) -> Section | None:
    """One small plot for each figure, source and result overlaid; layers that leave the source's band are ringed."""
    found = (report.get("checks") or {}).get("signal")
    if not found or not found.get("figures"):
        return None
    plots = [_plot(item) for item in found["figures"]]
    return Section("signal", "Signal before and after", found["verdict"], tag("div", *plots, class_="plots"))


def _plot(item: Mapping[str, Any]) -> Any:
    lines = [Series("source", BEFORE, item["before"]), Series("result", AFTER, item["after"])]
    picture = by_layer(lines, log=item["log"], marked=item["outside"])
    return figure(item["title"], picture, item["caption"], _KEYS)
