"""The alpha that gives an adapter's weight its scaling."""

from __future__ import annotations

import math


def alpha_for(scaling: float, divisor: float) -> float:
    """The alpha with ``alpha / divisor == scaling`` to the last bit, where there is one; an integer where it is whole.

    ``divisor`` is the rank, with rsLoRA its square root.
    """
    alpha = scaling * divisor
    near = (round(alpha), alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, 0.0))
    return next((value for value in near if value / divisor == scaling), alpha)
