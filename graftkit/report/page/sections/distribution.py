"""What the new rows take from the next-token distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from graftkit.errors import plural
from graftkit.report.page.markup import Markup, joined, tag
from graftkit.report.page.numbers import number
from graftkit.report.page.plots import AFTER, Bars, Mark, figure, histogram, meter
from graftkit.report.page.section import Section, chip, table

#: Bars for each power of ten.
_BARS = 6


def distribution(report: Mapping[str, Any]) -> Section | None:
    """A histogram of the KL over the positions with its bound, and the mass of each new token."""
    found = (report.get("outputs") or {}).get("distribution")
    if not found or not found.get("kl"):
        return None
    parts = [_kl(found)]
    if found.get("shares"):
        parts.append(_shares(report, found["shares"]))
    return Section("distribution", "Next-token distribution", _lead(found), tag("div", *parts, class_="plots"))


def _lead(found: Mapping[str, Any]) -> str:
    bound = found.get("bound")
    held = f", under the promised {number(bound)}" if bound is not None else "; no bound was promised"
    return (
        f"At the worst of {plural(found['positions'], 'position')} KL(old ‖ new) is {number(found['kl_max'])} nats{held}."
        f" All new ids together take at most {number(100 * float(found['mass_max']))} % of the probability."
    )


def _kl(found: Mapping[str, Any]) -> Any:
    values = [v for v in map(float, found["kl"]) if v > 0 and math.isfinite(v)]
    if not values:
        return tag("p", "The KL is zero at every position.")
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    bars = max(high - low, 1) * _BARS
    counts = [0] * bars
    for value in values:
        counts[min(int((math.log10(value) - low) / max(high - low, 1) * bars), bars - 1)] += 1
    mean, bound = float(found["kl_mean"]), found.get("bound")
    marks = [Mark(mean, f"mean: {number(mean)} nats", "after", "mean")]
    if bound is not None:
        marks.append(Mark(bound, f"promised bound {found['bound_kind']}: {number(bound)} nats", "bound", "bound"))
    picture = histogram(
        Bars("positions", AFTER, low, max(high, low + 1), counts), marks, log=True, name="KL(old ‖ new) in nats"
    )
    zero = len(found["kl"]) - len(values)
    extra = f" {plural(zero, 'position')} with none at all." if zero else ""
    kind = f"; bound: {found['bound_kind']}" if bound is not None else ""
    caption = f"Computed in float64; the tallest bar holds {plural(max(counts), 'position')}{kind}.{extra}"
    return figure("KL by position", picture, caption)


def _shares(report: Mapping[str, Any], shares: Sequence[tuple[int, float, float]]) -> Any:
    tokens = {index: token for token, index in report.get("new_tokens", {}).items()}
    means = [float(mean) for _, mean, _ in shares]
    largest = max(means) or 1.0
    rows = [
        (_token(i, tokens), joined(meter(mean / largest)), number(mean), number(worst))
        for (i, _, worst), mean in zip(shares, means, strict=True)
    ]
    columns = [("new token", ""), ("", ""), ("mean mass", "n"), ("largest", "n")]
    return tag("div", tag("h3", "Probability mass of each new id"), table(columns, rows), class_="beside")


def _token(index: int, tokens: Mapping[int, str]) -> Markup:
    return joined(chip(tokens[index]) if index in tokens else "padding row", tag("small", index))
