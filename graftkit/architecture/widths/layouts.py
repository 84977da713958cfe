"""Where the slices of an axis stand when it has grown: the ways that are tried, each a rule that holds for every size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from graftkit.architecture.index_map import IndexMap, Run
from graftkit.architecture.widths.growth import AxisGrowth

#: Where the indices stand that do not grow: before the others, behind them, or in equal shares in each group.
Fixed = Literal["first", "last", "spread"]

#: More parts than this are never fused in one copied axis: keys and values are two.
MOST_PARTS = 4


class Layout(Protocol):
    """A way in which an axis grows."""

    def index_map(self, axis: AxisGrowth) -> IndexMap | None:
        """Which index of the grown axis is which of the old one; None where the sizes do not fit."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """Equal groups, each with its old slices first and then new ones."""

    groups: int = 1
    fixed: Fixed = "spread"

    def index_map(self, axis: AxisGrowth) -> IndexMap | None:
        """As :class:`Layout` says."""
        apart = axis.fixed if self.fixed != "spread" else 0
        old, new = axis.old - apart, axis.new - apart
        if old % self.groups or new % self.groups:
            return None
        old, new = old // self.groups, new // self.groups
        start = apart if self.fixed == "first" else 0
        runs = [(start + group * new, start + group * old, old) for group in range(self.groups)]
        return _map(axis, [*runs, *_apart(axis, apart, self.fixed)])

    def __str__(self) -> str:
        """In words, for a plan."""
        if self.groups == 1:
            return "behind the old ones"
        return f"behind the old ones in each of {self.groups} groups"


@dataclass(frozen=True, slots=True)
class Repeated:
    """``parts`` parts one behind the other, in each of which every slice of one unit is there as often as the value grew.

    Copies stand beside one another, or ``tiled``: all slices, then all again. Shares of what is fixed stand in each group before its
    units, and are spread anew over the groups.
    """

    parts: int = 1
    tiled: bool = False
    fixed: Fixed = "spread"

    def index_map(self, axis: AxisGrowth) -> IndexMap | None:
        """As :class:`Layout` says."""
        times, left = divmod(axis.wanted, axis.value)
        if left or axis.unit % self.parts:  # a fraction of an index is no copy of one
            return None
        if self.fixed == "spread" and axis.fixed:
            return self._spread(axis, times)
        size, apart = int(axis.unit) // self.parts, axis.fixed
        start = apart if self.fixed == "first" else 0
        runs = [
            (start + (part * axis.wanted + index) * size, start + (part * axis.value + self._origin(index, axis, times)) * size, size)
            for part in range(self.parts)
            for index in range(axis.wanted)
        ]  # fmt: skip
        return _map(axis, [*runs, *_apart(axis, apart, self.fixed)])

    def _origin(self, index: int, axis: AxisGrowth, times: int) -> int:
        return index % axis.value if self.tiled else index // times

    def _spread(self, axis: AxisGrowth, times: int) -> IndexMap | None:
        """Each group has its share of what is fixed and then its units."""
        if self.tiled or self.parts > 1 or axis.fixed % axis.wanted:
            return None
        share, unit = axis.fixed // axis.wanted, int(axis.unit)
        old, new = share * times + unit, share + unit
        runs: list[Run] = []
        for index in range(axis.wanted):
            group, place = divmod(index, times)
            runs.append((index * new, group * old + place * share, share))
            runs.append((index * new + share, group * old + times * share, unit))
        return _map(axis, runs)

    def __str__(self) -> str:
        """In words, for a plan."""
        return "all of them again" if self.tiled else "each beside its copies"


def _apart(axis: AxisGrowth, size: int, fixed: Fixed) -> list[Run]:
    """The indices that stay as they are, before the others or behind them."""
    if not size:
        return []
    return [(0, 0, size)] if fixed == "first" else [(axis.new - size, axis.old - size, size)]


def _map(axis: AxisGrowth, runs: list[Run]) -> IndexMap:
    return IndexMap.of_runs(axis.old, axis.new, runs)


def grouped_layouts(axis: AxisGrowth) -> Iterator[Grouped]:
    """The ways in which old slices may stand among new ones, those with the fewest groups first."""
    yield from (Grouped(groups) for groups in _divisors(axis.old, axis.new))
    if axis.fixed:
        old, new = axis.old - axis.fixed, axis.new - axis.fixed
        for groups, fixed in itertools.product(_divisors(old, new), ("first", "last")):
            yield Grouped(groups, "first" if fixed == "first" else "last")


def repeated_layouts(axis: AxisGrowth) -> Iterator[Repeated]:
    """The ways in which slices may be repeated."""
    places: tuple[Fixed, ...] = ("first", "last", "spread") if axis.fixed else ("spread",)
    for parts, tiled, fixed in itertools.product(range(1, MOST_PARTS + 1), (False, True), places):
        layout = Repeated(parts, tiled, fixed)
        if layout.index_map(axis) is not None:
            yield layout


def _divisors(*sizes: int) -> list[int]:
    return [number for number in range(1, min(sizes) + 1) if not any(size % number for size in sizes)]
