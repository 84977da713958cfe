"""Whether base and adapter put together are the source's weights: in float64, matrix by matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.peft.parts import LoraPart, lora_parts
from graftkit.verification.adapters.factor_rounding import WIDE, magnitude, stored
from graftkit.verification.distribution import UNIT_ROUNDOFF

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class WeightGap:
    """How far the weights put together are from the source's: the worst matrix, relative, and in its own roundings."""

    word: str
    figure: str
    worst: float
    roundings: float
    failures: tuple[str, ...]


def residual_gap(adapted: nn.Module, original: nn.Module, correspondence: Correspondence = IDENTITY) -> WeightGap:
    """Put each target's weight together in float64 and compare it with that of the source, the ``original`` model.

    ‖W - (W' + sBA)‖ may be one rounding of W' to its dtype, the rounding of both factors to theirs, and that of a sum over the
    rank, which is formed in float32 for half precision and in float64 otherwise. Rows of new ids and new blocks are left out.
    """
    import torch

    worst, roundings, failures = 0.0, 0.0, []
    with torch.inference_mode():
        for part in _linears(adapted):
            name = correspondence.module_in_source(part.path)
            if name is None:
                continue
            old, rest = (
                module.get_parameter("weight").detach() for module in (original.get_submodule(name), part.base)
            )
            a, b = part.wide_factors()
            update = part.update()
            (old, rest), (_, update) = (correspondence.values(f"{name}.weight", old, new) for new in (rest, update))
            gap = float((old.double() - rest.double() - update).norm())
            unit = UNIT_ROUNDOFF[str(rest.dtype)]
            size = float(rest.double().norm())
            worst = max(worst, gap / max(float(old.double().norm()), 1e-300))
            roundings = max(roundings, gap / max(unit * size, 1e-300))
            sums = UNIT_ROUNDOFF["torch.float32"] if unit > UNIT_ROUNDOFF["torch.float32"] else WIDE
            rounded = stored(a, b, (part.a.dtype, part.b.dtype)) + (len(a) + 1) * sums * magnitude(a, b)
            allowed = unit * size + sums * float(old.double().norm()) + abs(part.scaling) * rounded
            if not gap <= allowed:
                failures.append(
                    f"adapter: {part.path}: base and adapter are {gap:.3g} from the source's weight, allowed {allowed:.3g}"
                )
    return WeightGap("rounded", f"relative {worst:.3g}, {roundings:.2g} roundings", worst, roundings, tuple(failures))


def offset_gap(adapted: nn.Module) -> WeightGap:
    """Look whether the halves of A are equal and those of B opposite to the last bit, so that their product is zero."""
    parts = list(_linears(adapted))
    failures = tuple(
        f"adapter: {part.path}: its halves do not cancel"
        for part in parts
        if not (part.a[0::2].equal(part.a[1::2]) and part.b[:, 0::2].equal(-part.b[:, 1::2]))
    )
    return WeightGap("exact", f"the halves of {len(parts)} targets cancel to the last bit", 0.0, 0.0, failures)


def _linears(model: nn.Module) -> Iterator[LoraPart]:
    return (part for part in lora_parts(model) if not part.on_table)
