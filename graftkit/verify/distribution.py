"""What new rows do to the next-token distribution: the mass that they take, the KL, and the bound that was promised.

The ratios among old tokens never change, so KL(p_old ‖ p_new) = log(1 + S/Z) with S the new and Z the old tokens' sum of
exp(logit). Both are computed in float64 from the input of the output embedding, captured where the model computed it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from graftkit.verify.vocabulary import KLPromise, VocabularyChange

#: Positions at which the distribution is computed in float64.
POSITIONS = 16

#: Rows of the output table that are widened to float64 at a time.
ROWS = 8_192

UNIT_ROUNDOFF = {
    "torch.bfloat16": 2.0**-8,
    "torch.float16": 2.0**-11,
    "torch.float32": 2.0**-24,
    "torch.float64": 2.0**-53,
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """KL in nats and mass of the fresh ids over the float64 positions; ``bound`` is None where none was promised."""

    positions: int
    kl_mean: float
    kl_max: float
    mass_max: float
    bound: float | None
    bound_kind: str
    #: How far the worst position is above its own bound; 0 or less when it holds.
    excess: float


class Capture:
    """Keeps the input and the output of the output embedding during a forward. Use as a context manager."""

    def __init__(self, module: Any) -> None:
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._module, self._hook = module, None

    def __enter__(self) -> Self:
        self._hook = self._module.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()  # type: ignore[attr-defined]

    def _keep(self, _: Any, inputs: tuple[Any, ...], output: Any) -> None:
        self.inputs.append(inputs[0].detach())
        self.outputs.append(output.detach())


def measure(
    module: Any, hidden: Any, raw: Any, logits: Any, change: VocabularyChange, promise: KLPromise | None
) -> Distribution:
    """Measure at the given positions.

    *Shapes:* ``hidden`` ``(n, d)``, ``raw`` and ``logits`` ``(n, new_rows)``: the output embedding's input and output,
    and the model's own logits.
    """
    import torch

    scale = affine_scale(raw, logits)
    fresh = torch.tensor(change.fresh)
    kept = torch.ones(change.new_rows, dtype=torch.bool)
    kept[fresh] = False
    if scale is None:
        z = logits.double()
        slack = torch.full((len(z),), 4 * UNIT_ROUNDOFF[str(logits.dtype)] * float(z.abs().max()), dtype=torch.float64)
    else:
        z, slack = _exact_logits(module, hidden, scale, change, promise)
    old = torch.logsumexp(z[:, kept], 1)
    ratio = torch.exp(torch.logsumexp(z[:, fresh], 1) - old)
    kl = torch.log1p(ratio)
    bound, kind = None, "none promised"
    if promise is not None:
        if promise.kind == "mean" and scale is not None:
            share = torch.full_like(slack, len(fresh) / promise.rows_averaged)
            kind = "log(1 + k/m)"
        else:
            share = len(fresh) * torch.exp(z[:, kept].max(1).values - old)
            kind = "log(1 + k max p)"
        bound = torch.log1p(share * torch.exp(slack))
    excess = float((kl - bound).max()) if bound is not None else 0.0
    return Distribution(
        len(kl), float(kl.mean()), float(kl.max()), float((ratio / (1 + ratio)).max()),
        float(bound.max()) if bound is not None else None, kind, excess,
    )  # fmt: skip


def affine_scale(raw: Any, logits: Any) -> float | None:
    """The c for which the model's logits are c times the output embedding's output; None when they are not."""
    if raw.shape != logits.shape:
        return None
    a, b = raw.double().flatten(), logits.double().flatten()
    norm = float(a @ a)
    if norm == 0:
        return None
    scale = float(a @ b) / norm
    tolerance = 8 * UNIT_ROUNDOFF[str(logits.dtype)] * float(b.abs().max())
    return scale if float((scale * a - b).abs().max()) <= tolerance and scale > 0 else None


def _exact_logits(
    module: Any, hidden: Any, scale: float, change: VocabularyChange, promise: KLPromise | None
) -> tuple[Any, Any]:
    """Logits in float64 ``(n, new_rows)``, and ``(n,)`` the largest effect of rounding the fresh rows."""
    import torch

    weight, bias = module.weight, getattr(module, "bias", None)
    wide = hidden.double() * scale
    z = torch.empty(len(wide), change.new_rows, dtype=torch.float64)
    for start in range(0, change.new_rows, ROWS):
        z[:, start : start + ROWS] = wide @ weight[start : start + ROWS].double().T
    if bias is not None:
        z += bias.double() * scale
    fresh = torch.tensor(change.fresh)
    if promise is not None and promise.kind == "mean":
        averaged = torch.arange(change.live) if promise.averaged is None else torch.tensor(promise.averaged)
        # The exact mean row's logit is the mean of the averaged rows' logits: no need to form the row.
        slack = (z[:, fresh] - z[:, averaged].mean(1, keepdim=True)).abs().max(1).values
        unit = UNIT_ROUNDOFF[str(weight.dtype)] * 2
        allowed = unit * (wide.abs() @ weight[fresh].double().abs().T).max(1).values + 1e-9
        if bias is not None:
            allowed += unit * float((bias[fresh].double() * scale).abs().max())
        return z, torch.minimum(slack, allowed)
    unit = UNIT_ROUNDOFF[str(weight.dtype)]
    return z, unit * (wide.abs() @ weight[fresh].double().abs().T).max(1).values


def native_mass(logits: Any, change: VocabularyChange) -> tuple[float, float]:
    """``(mean, max)`` probability mass of the fresh ids, from the model's own logits. *Shape:* ``(n, new_rows)``."""
    import torch

    fresh = torch.tensor(change.fresh)
    total, largest = 0.0, 0.0
    for rows in logits.split(64):
        wide = rows.double()
        mass = torch.exp(torch.logsumexp(wide[:, fresh], 1) - torch.logsumexp(wide, 1))
        total, largest = total + float(mass.sum()), max(largest, float(mass.max()))
    return total / max(len(logits), 1), min(largest, 1.0) if math.isfinite(largest) else largest
