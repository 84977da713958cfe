"""Whether base and adapter put together are the source's weights: in float64, matrix by matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.peft.injection import NAME
from graftkit.verification.distribution import UNIT_ROUNDOFF
from graftkit.verification.factor_rounding import WIDE, magnitude, stored


@dataclass(frozen=True, slots=True)
class WeightGap:
    """How far the weights put together are from the source's: the worst matrix, relative, and in its own roundings."""

    word: str
    figure: str
    worst: float
    roundings: float
    failures: tuple[str, ...]


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora.layer import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and NAME in module.lora_A:
            yield name, module


def residual_gap(adapted: Any, original: Any, correspondence: Correspondence = IDENTITY) -> WeightGap:
    """Put each target's weight together in float64 and compare it with that of the source, the ``original`` model.

    ‖W - (W' + sBA)‖ may be one rounding of W' to its dtype, the rounding of both factors to theirs, and that of a sum over the
    rank, which is formed in float32 for half precision and in float64 otherwise. Rows of new ids are left out.
    """
    import torch

    worst, roundings, failures = 0.0, 0.0, []
    with torch.inference_mode():
        for name, layer in _layers(adapted):
            old = original.get_submodule(name).weight
            rest = layer.get_base_layer().weight
            a, b = (side[NAME].weight.double() for side in (layer.lora_A, layer.lora_B))
            product = b @ a
            update = layer.scaling[NAME] * (product.T if layer.fan_in_fan_out else product)
            (old, rest), (_, update) = correspondence.rows(old, rest), correspondence.rows(old, update)
            gap = float((old.double() - rest.double() - update).norm())
            unit = UNIT_ROUNDOFF[str(rest.dtype)]
            worst = max(worst, gap / max(float(old.double().norm()), 1e-300))
            roundings = max(roundings, gap / max(unit * float(rest.double().norm()), 1e-300))
            dtypes = layer.lora_A[NAME].weight.dtype, layer.lora_B[NAME].weight.dtype
            sums = UNIT_ROUNDOFF["torch.float32"] if unit > UNIT_ROUNDOFF["torch.float32"] else WIDE
            factors = abs(layer.scaling[NAME]) * (stored(a, b, dtypes) + (len(a) + 1) * sums * magnitude(a, b))
            allowed = unit * float(rest.double().norm()) + sums * float(old.double().norm()) + factors
            if not gap <= allowed:
                failures.append(
                    f"adapter: {name}: base and adapter are {gap:.3g} from the source's weight, allowed {allowed:.3g}"
                )
    return WeightGap("rounded", f"relative {worst:.3g}, {roundings:.2g} roundings", worst, roundings, tuple(failures))


def offset_gap(adapted: Any) -> WeightGap:
    """Look whether the halves of A are equal and those of B opposite to the last bit, so that their product is zero."""
    failures = []
    count = 0
    for name, layer in _layers(adapted):
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        count += 1
        if not (a[0::2].equal(a[1::2]) and b[:, 0::2].equal(-b[:, 1::2])):
            failures.append(f"adapter: {name}: its halves do not cancel")
    return WeightGap("exact", f"the halves of {count} targets cancel to the last bit", 0.0, 0.0, tuple(failures))
