"""The plots: small SVG pictures that take their colours from the page, with the figures as tooltips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graftkit.errors import plural
from graftkit.report.page.axes import Axis, linear, logarithmic, whole
from graftkit.report.page.markup import Markup, joined, tag
from graftkit.report.page.numbers import count, number

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 410, 12, 184

#: The two sides of every comparison, by the class that colours them.
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot: a value for each layer; None where there is none."""

    label: str
    side: str
    values: Sequence[float | None]


def figure(title: object, picture: Markup, caption: str = "") -> Markup:
    """A plot with its title above and a caption below."""
    return tag("figure", tag("h3", title), picture, tag("figcaption", caption) if caption else None)


def legend(keys: Sequence[tuple[str, str]]) -> Markup:
    """What the colours mean: ``(class, label)``."""
    return tag("p", *(tag("span", tag("i", class_=f"key {side}"), label) for side, label in keys), class_="legend")


@dataclass(frozen=True, slots=True)
class Band:
    """What the source's own texts span at each layer."""

    low: Sequence[float | None]
    high: Sequence[float | None]


def by_layer(
    series: Sequence[Series],
    *,
    log: bool = False,
    marked: Sequence[int] = (),
    band: Band | None = None,
    limits: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Lines over the layers. On a logarithmic axis a zero lies on the ground line; ``marked`` layers get a ring.

    A ``band`` is shaded; each of the ``limits`` is a dashed line across, with its name.
    """
    values = [v for line in series for v in line.values if v is not None] + [value for value, _ in limits]
    values += [v for side in (band.low, band.high) for v in side if v is not None] if band else []
    y = logarithmic(values, BOTTOM - 14, TOP) if log else linear(values, BOTTOM, TOP)
    x = whole(max(len(line.values) for line in series) - 1, LEFT + 8, RIGHT - 8)
    drawn = [_shade(band, x, y)] if band else []
    drawn += [part for value, name in limits for part in _limit(value, name, y)]
    drawn += [part for line in series for part in _line(line, x, y, marked)]
    ground = [tag("text", "0", x=LEFT - 8, y=BOTTOM + 4, text_anchor="end")] if log and 0 in values else []
    label = ", ".join(line.label for line in series)
    return _paper(f"{label} by layer", _grid(y), *ground, _bottom(x, "layer"), *drawn)


def _shade(band: Band, x: Axis, y: Axis) -> Markup:
    places = [
        (i, a, b) for i, (a, b) in enumerate(zip(band.low, band.high, strict=True)) if a is not None and b is not None
    ]
    there = [f"{x.at(i):.1f},{_height(y, b):.1f}" for i, _, b in places if b is not None]
    back = [f"{x.at(i):.1f},{_height(y, a):.1f}" for i, a, _ in reversed(places) if a is not None]
    return tag("polygon", points=" ".join(there + back), class_="band")


def _limit(value: float, name: str, y: Axis) -> list[Markup]:
    place = _height(y, value)
    line = tag(
        "line", tag("title", f"{name}: {number(value)}"), x1=LEFT, x2=RIGHT, y1=place, y2=place, class_="mark bound"
    )
    return [line, tag("text", name, x=RIGHT, y=place - 5, text_anchor="end", class_="word bound")]


def _line(line: Series, x: Axis, y: Axis, marked: Sequence[int]) -> list[Markup]:
    places = [(i, x.at(i), _height(y, v), v) for i, v in enumerate(line.values) if v is not None and math.isfinite(v)]
    path = " ".join(f"{a:.1f},{b:.1f}" for _, a, b, _ in places)
    parts = [tag("polyline", points=path, class_=f"line {line.side}")]
    small = len(places) > 40
    for index, a, b, value in places:
        note = tag("title", f"layer {index}, {line.label}: {number(value)}")
        kind = f"dot {line.side}" + (" marked" if index in marked and line.side == AFTER else "")
        parts.append(tag("circle", note, cx=a, cy=b, r=1.8 if small and "marked" not in kind else 3.0, class_=kind))
    return parts


def _height(axis: Axis, value: float) -> float:
    return float(BOTTOM) if axis.log and value <= 0 else axis.at(value)


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram: ``counts`` of equal bars over ``low..high``, as shares of their sum."""

    label: str
    side: str
    low: float
    high: float
    counts: Sequence[int]


@dataclass(frozen=True, slots=True)
class Mark:
    """A value on the horizontal axis that gets a line, with a label for the tooltip, and a word beside it if there is one."""

    value: float
    label: str
    side: str = AFTER
    word: str = ""


def histogram(bars: Bars, marks: Sequence[Mark] = (), *, log: bool = False, name: str = "") -> Markup:
    """A histogram with marks. With ``log``, ``low`` and ``high`` are exponents of ten."""
    largest = max(bars.counts, default=0) or 1
    ends = (10.0**bars.low, 10.0**bars.high) if log else (bars.low, bars.high)
    values = [*ends, *(mark.value for mark in marks)]
    x = logarithmic(values, LEFT - 38, RIGHT - 2) if log else linear(values, LEFT - 38, RIGHT - 2)
    width = (bars.high - bars.low) / max(len(bars.counts), 1)
    drawn: list[Markup] = []
    worded = [mark for mark in marks if mark.word]
    for index, amount in enumerate(bars.counts):
        a, b = (bars.low + (index + i) * width for i in (0, 1))
        a, b = (10.0**a, 10.0**b) if log else (a, b)
        if amount:
            left, right = x.at(a), x.at(b)
            top = BOTTOM - (BOTTOM - TOP - 15 * max(len(worded), 1)) * amount / largest
            note = tag("title", f"{number(a)} to {number(b)}: {count(amount)} {bars.label}")
            box = {"x": left, "y": top, "width": max(right - left - 0.8, 0.8), "height": BOTTOM - top, "rx": 1.0}
            drawn.append(tag("rect", note, class_=f"bar {bars.side}", **box))
    drawn += [part for mark in marks for part in _mark(mark, x, worded.index(mark) if mark.word else 0)]
    return _paper(name or bars.label, _bottom(x, name), *drawn)


def _mark(mark: Mark, x: Axis, row: int) -> list[Markup]:
    """The line, and its word in a ``row`` of its own, since two marks may lie side by side."""
    place = x.at(mark.value)
    line = tag("line", tag("title", mark.label), x1=place, x2=place, y1=TOP + 2, y2=BOTTOM, class_=f"mark {mark.side}")
    if not mark.word:
        return [line]
    end = place > (LEFT + RIGHT) / 2
    anchor = {"x": place + (-5 if end else 5), "y": TOP + 10 + 15 * row, "text_anchor": "end" if end else "start"}
    return [line, tag("text", mark.word, class_=f"word {mark.side}", **anchor)]


def cells(values: Sequence[tuple[str, str, str]]) -> Markup:
    """One square for each ``(class, label, tooltip)``: the layers at a glance."""
    squares = [tag("span", label, class_=f"cell {kind}", title=note) for kind, label, note in values]
    return tag("div", *squares, class_="cells", role="img", aria_label=plural(len(values), "output"))


def meter(share: float, side: str = AFTER) -> Markup:
    """A thin bar for a share of 1, to stand in a table."""
    width = 64 * min(max(share, 0.0), 1.0)
    track = tag("rect", class_="track", width=64, height=6, rx=3)
    value = tag("rect", class_=f"bar {side}", width=max(width, 1.5), height=6, rx=1.5)
    return tag("svg", track, value, viewBox="0 0 64 6", class_="meter", aria_hidden="true")


def _paper(name: str, *children: object) -> Markup:
    return tag("svg", *children, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="plot", role="img", aria_label=name)


def _grid(y: Axis) -> Markup:
    parts = []
    for value, label in y.ticks():
        place = y.at(value)
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=place, y2=place, class_="grid"))
        parts.append(tag("text", label, x=LEFT - 8, y=place + 4, text_anchor="end"))
    return joined(*parts)


def _bottom(x: Axis, name: str) -> Markup:
    parts = [tag("line", x1=min(x.start, LEFT), x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="ground")]
    for value, label in x.ticks():
        parts.append(tag("text", label, x=x.at(value), y=BOTTOM + 16, text_anchor="middle"))
    middle = (x.start + x.end) / 2
    parts.append(tag("text", name, x=middle, y=BOTTOM + 32, text_anchor="middle", class_="name"))
    return joined(*parts)
