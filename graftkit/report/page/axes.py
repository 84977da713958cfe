"""Scales between values and places on the paper, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from graftkit.report.page.numbers import number, power

#: No axis has more ticks than this.
TICKS = 6

#: A linear axis spans no less than this share of its largest value: what differs by less is shown as flat.
_LEAST = 0.05


@dataclass(frozen=True, slots=True)
class Axis:
    """Values ``low..high`` over the places ``start..end``.

    ``log`` is in powers of ten, where what is not positive has no place; ``whole`` has ticks at whole numbers alone.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def at(self, value: float) -> float:
        """The place of a value, never outside the axis."""
        a, b, x = (math.log10(v) if self.log else v for v in (self.low, self.high, max(value, self.low)))
        share = min(max((x - a) / (b - a), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values on the axis with their labels."""
        return self._powers() if self.log else self._steps()

    def _powers(self) -> list[tuple[float, str]]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        step = max(math.ceil((last - first + 1) / TICKS), 1)
        return [(10.0**exponent, power(exponent)) for exponent in range(first, last + 1, step)]

    def _steps(self) -> list[tuple[float, str]]:
        step = _round_step((self.high - self.low) / (TICKS - 1))
        step = max(step, 1.0) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        digits = max(-math.floor(math.log10(step)), 0)
        return [(i * step, _label(i * step, digits)) for i in range(first, last + 1)]


def _label(value: float, digits: int) -> str:
    if value and not 1e-4 < abs(value) < 1e6:
        return number(value, 2)
    return f"{value:,.{digits}f}".replace("-", "−")


def _round_step(rough: float) -> float:
    scale = 10.0 ** math.floor(math.log10(rough))
    return next(m * scale for m in (1, 2, 5, 10) if m * scale >= rough * (1 - 1e-9))


def linear(values: Iterable[float], start: float, end: float, *, zero: bool = False) -> Axis:
    """An axis that holds the finite ``values``, widened to round ends; with ``zero`` it begins there."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = (min(0.0, *finite) if zero else min(finite)), max(finite)
    least = _LEAST * max(abs(low), abs(high)) or 1.0
    if high - low < least:
        low, high = (low if zero else low - least / 2), high + least / 2
    step = _round_step((high - low) / (TICKS - 1))
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end)


def whole(last: int, start: float, end: float) -> Axis:
    """An axis of the whole numbers ``0..last``, for layers."""
    return Axis(0, max(last, 1), start, end, whole=True)


def logarithmic(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis of powers of ten that holds the positive finite ``values``, from a whole power to a whole power."""
    finite = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    low, high = math.floor(math.log10(min(finite)) + 1e-9), math.ceil(math.log10(max(finite)) - 1e-9)
    return Axis(10.0**low, 10.0 ** max(high, low + 1), start, end, log=True)
