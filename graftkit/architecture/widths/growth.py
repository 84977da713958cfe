"""Which axes of which parameters a config value makes longer: the differential skeleton, for a value that grows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from graftkit.architecture.skeleton import Skeleton

#: Name in memory -> the axes that are longer, each with its growth.
Growths = Mapping[str, Mapping[int, "AxisGrowth"]]


@dataclass(frozen=True, slots=True)
class AxisGrowth:
    """An axis of ``old`` indices that has ``new`` when the config value goes from ``value`` to ``wanted``."""

    old: int
    new: int
    value: int
    wanted: int

    @property
    def unit(self) -> Fraction:
        """How many indices one more of the value makes: half of one where a gate has the other half."""
        return Fraction(self.new - self.old, self.wanted - self.value)

    @property
    def fixed(self) -> int:
        """How many indices do not depend on the value."""
        return int(self.old - self.unit * self.value)

    @property
    def is_linear(self) -> bool:
        """Whether the axis grows in proportion to the value, but for indices that do not depend on it."""
        return self.unit > 0 and 0 <= self.fixed == self.old - self.unit * self.value


def growths(before: Skeleton, after: Skeleton, value: int, wanted: int) -> Growths | None:
    """What grows from one skeleton to the other; None where parameters come, go or get another number of axes."""
    if before.shapes.keys() != after.shapes.keys():
        return None
    found: dict[str, dict[int, AxisGrowth]] = {}
    for name, old in before.shapes.items():
        new = after.shapes[name]
        if len(old) != len(new):
            return None
        for axis, (was, is_) in enumerate(zip(old, new, strict=True)):
            if was != is_:
                found.setdefault(name, {})[axis] = AxisGrowth(was, is_, value, wanted)
    return found


def value_behind(before: Skeleton, after: Skeleton, wanted: int, further: Skeleton, more: int) -> int | None:
    """What a value is that the class derives: from the skeletons with ``wanted`` and with ``more``, since axes grow in proportion.

    None where no axis tells.
    """
    for name, old in before.shapes.items():
        for axis, was in enumerate(old):
            first, second = after.shapes.get(name, ())[axis : axis + 1], further.shapes.get(name, ())[axis : axis + 1]
            if first and second and first != second:
                unit = (second[0] - first[0]) / (more - wanted)
                value = wanted - (first[0] - was) / unit
                if value == int(value) and value > 0:
                    return int(value)
    return None


def kind(name: str) -> str:
    """A parameter's name without the numbers of blocks and experts: what all of its kind share."""
    return ".".join("*" if step.isdigit() else step for step in name.split("."))
