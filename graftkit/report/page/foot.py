"""The end of the page: what was not checked, and where everything comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.report.page.markup import Markup, tag
from graftkit.report.page.section import Section
from graftkit.report.unchecked import unchecked


def not_checked(report: Mapping[str, Any]) -> Section:
    """The list of what this report cannot speak for."""
    found = unchecked(report)
    items = [part for what, why in found for part in (tag("dt", what), tag("dd", why))]
    return Section(
        "not-checked", "Not checked", "What this report cannot speak for.", tag("dl", *items, class_="plain-list")
    )


def provenance(report: Mapping[str, Any]) -> Section:
    """Versions, the time that each part took, and what was left behind."""
    versions = ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items())
    rows: list[tuple[str, object]] = [("source", report["source"]["name"])]
    if report["source"].get("revision"):
        rows.append(("revision", report["source"]["revision"]))
    rows.append(("versions", versions))
    seconds = (report.get("outputs") or {}).get("seconds") or {}
    if seconds:
        rows.append(("time", ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())))
    rows += [
        ("left behind", f"{name}: {reason}") for name, reason in (report["source"].get("left_behind") or {}).items()
    ]
    items: list[Markup] = [part for name, value in rows for part in (tag("dt", name), tag("dd", value))]
    return Section("provenance", "Provenance", "", tag("dl", *items, class_="plain-list"))
