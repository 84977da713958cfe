"""The top of the page of two checkpoints that were compared without a recipe: the verdict, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.report.page.head import figures, name_of, not_covered
from graftkit.report.page.markup import Markup, joined, tag
from graftkit.report.page.numbers import count

#: So many findings stand at the top.
NAMED = 12


def comparison_head(report: Mapping[str, Any]) -> Markup:
    """Which two, whether the second does what the first did, and each finding."""
    found, before = report["comparison"], report["source"]["name"]
    failures = found["failures"]
    word, kind = ("Differs", "doubt") if failures else ("Verified", "good")
    said = "B does not do what A did." if failures else f"{found['verdict']}."
    more = tag("li", f"and {count(len(failures) - NAMED)} more") if len(failures) > NAMED else None
    verdict = tag(
        "div",
        tag("p", tag("span", word, class_=f"badge {kind}"), class_="badges"),
        tag("p", said, class_="promise"),
        tag("ul", *(tag("li", failure) for failure in failures[:NAMED]), more, class_="notes") if failures else None,
        not_covered(report),
        class_="verdict",
    )
    title = tag(
        "div",
        tag("h1", name_of(found["after"]), " ", tag("span", "compared")),
        tag("p", "A is ", tag("code", before), ", B is ", tag("code", found["after"])),
        class_="title",
    )
    return joined(title, verdict, tag("div", tag("dl", *figures(report), class_="figures"), class_="overview"))
