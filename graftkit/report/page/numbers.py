"""Numbers as people read them."""

from __future__ import annotations

import math

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | str | None, digits: int = 3) -> str:
    """A measured number with ``digits`` significant digits; very large and very small ones as powers of ten.

    A report holds what is not finite as a string.
    """
    if value is None:
        return "–"
    if isinstance(value, bool | str) or not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    exponent = int(power)
    if -4 < exponent < 6:
        return f"{value:,.{max(digits - 1 - exponent, 0)}f}".replace("-", "−")
    return f"{mantissa} × 10{str(exponent).translate(_SUPERSCRIPT)}".replace("-", "−", 1 if value < 0 else 0)


def power(exponent: int) -> str:
    """Ten to a whole power, as an axis shows it."""
    return {0: "1", 1: "10", 2: "100"}.get(exponent, f"10{str(exponent).translate(_SUPERSCRIPT)}")


def count(value: float) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,.0f}"


def short_count(value: float) -> str:
    """A count in at most four characters: 8.4 M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= scale:
            return f"{value / (1e3 if unit == 'k' else scale):.3g} {unit}"
    return count(value)


def shape(sizes: list[int] | None) -> str:
    """A tensor's shape."""
    return "–" if sizes is None else " × ".join(map(str, sizes)) or "scalar"
