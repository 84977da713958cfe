"""What new rows do to the next-token distribution: the mass that they take, the KL, and the bound that was promised.

The ratios among old tokens never change, so KL(p_old ‖ p_new) = log(1 + S/Z) with S the new and Z the old tokens' sum of
exp(logit). Both are computed in float64 from the input of the output embedding, captured where the model computed it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.embeddings import OUTPUT, embedding_of
from graftkit.verification.kl_promise import KLPromise

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from graftkit.architecture.embeddings import Table

#: Bytes of float64 logits at all captured positions together.
POSITION_BYTES = 16 << 20

#: Never more positions than this, however small the table is.
MOST_POSITIONS = 256

#: So many fresh ids are named with the mass that each takes.
SHARES = 64

#: Elements of the output table that are widened to float64 at a time.
CHUNK = 4 << 20

UNIT_ROUNDOFF = {
    "torch.bfloat16": 2.0**-8,
    "torch.float16": 2.0**-11,
    "torch.float32": 2.0**-24,
    "torch.float64": 2.0**-53,
}

#: A logit below this is a mask that the model puts on an id, not a value.
MASKED = -1e5


@dataclass(frozen=True, slots=True)
class Distribution:
    """KL in nats and mass of the fresh ids over the float64 positions; ``bound`` is None where none was promised.

    ``kl`` is the KL at each position; the mass of all fresh ids there is 1 - exp(-KL). ``shares`` gives ``(id, mean mass, largest
    mass)`` of the fresh ids that take most; ``likeliest`` is the largest mean mass of an old id, with what rounding can add.
    """

    positions: int
    kl_mean: float
    kl_max: float
    mass_max: float
    bound: float | None
    bound_kind: str
    #: How far the worst position is above its own bound; 0 or less when it holds.
    excess: float
    kl: tuple[float, ...] = ()
    shares: tuple[tuple[int, float, float], ...] = ()
    likeliest: float = 0.0


#: Input and output of each call.
Calls = list[tuple["Tensor", "Tensor"]]


class Capture:
    """Keeps inputs and outputs of the output embedding while the model runs, by thread. Use as a context manager."""

    def __init__(self, module: Table | None) -> None:
        self._threads = threading.local()
        self._module = module
        self._hook: RemovableHandle | None = None

    @property
    def calls(self) -> Calls:
        """Those of this thread since it was cleared."""
        if not hasattr(self._threads, "calls"):
            self._threads.calls = []
        found: Calls = self._threads.calls
        return found

    def __enter__(self) -> Self:
        if self._module is not None:
            self._hook = self._module.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.calls.append((inputs[0], output))

    def behind(self, logits: Tensor, name: str) -> tuple[Tensor, Tensor] | None:
        """The call whose output became ``logits``: the only one, or that of the step which ``name`` begins with."""
        words = name.split()
        index = int(words[1]) if words[0] == "step" else 0
        if len(self.calls) <= index or (words[0] != "step" and len(self.calls) != 1):
            return None
        hidden, raw = self.calls[index]
        return (hidden, raw) if getattr(raw, "shape", None) == logits.shape else None


def output_table(model: PreTrainedModel, rows: int) -> Table | None:
    """The output embedding where it is a module with a table of ``rows`` rows, else None."""
    module = embedding_of(model, OUTPUT)
    return module if module is not None and module.weight.shape[0] == rows else None


def positions_for(rows: int) -> int:
    """At how many positions the distribution of a table of ``rows`` rows is computed in float64."""
    return max(min(POSITION_BYTES // (8 * rows), MOST_POSITIONS), 4)


def measure(
    module: Table | None, hidden: Tensor | None, raw: Tensor | None, logits: Tensor, correspondence: Correspondence,
    promise: KLPromise | None,
) -> Distribution:  # fmt: skip
    """Measure at the given positions.

    *Shapes:* ``hidden`` ``(n, d)``, ``raw`` and ``logits`` ``(n, new_rows)``: the output embedding's input and output, and
    the model's own logits. Where the logits are no affine function of ``raw`` (a soft cap), they are taken as they are, and
    only the bound by the largest probability holds, since that needs no more than monotony. Ids that the model masks
    are taken as they are before the mask, which no bound knows of. ``hidden`` and ``raw`` are None where the model has no
    module for it: then, too, the logits are taken as they are.
    """
    import torch

    call = None if module is None or hidden is None else (module, hidden.double())
    fit = None if raw is None else _affine_fit(raw.double(), logits.double(), str(logits.dtype))
    fresh, kept = _fresh_and_kept(correspondence, logits.shape[-1])
    if fit is None or call is None:
        z = logits.double()
        largest = torch.maximum(z[:, fresh].abs().max(1).values, z[:, kept].max(1).values.abs())
        slack = 8 * UNIT_ROUNDOFF[str(logits.dtype)] * largest
        if call is not None:
            slack += _row_rounding(*call, fresh)
    else:
        z, slack = _exact_logits(call[0], call[1] * fit[0], fit, fresh)
    if promise is not None and promise.kind == "likeliest" and call is not None:
        slack = torch.minimum(slack, _old_rounding(call[0], call[1] * (fit[0] if fit else 1.0), kept))
    old = torch.logsumexp(z[:, kept], 1)
    ratio = torch.exp(torch.logsumexp(z[:, fresh], 1) - old)
    bound, kind = _bound(z, old, slack, correspondence, promise, exact=fit is not None)
    kl = torch.log1p(ratio)
    excess = float((kl - bound).max()) if bound is not None else 0.0
    return Distribution(
        len(kl), float(kl.mean()), float(kl.max()), float((ratio / (1 + ratio)).max()),
        float(bound.max()) if bound is not None else None, kind, excess, tuple(kl.tolist()), _shares(z, fresh),
        float((_mean_mass(z, kept) * torch.exp(slack.max())).max()),
    )  # fmt: skip


def _mean_mass(z: Tensor, ids: Tensor) -> Tensor:
    """The mean mass of each of these ids. *Shapes:* ``z`` ``(n, new_rows)``; the result ``(ids,)``."""
    import torch

    return torch.exp(z[:, ids] - torch.logsumexp(z, 1, keepdim=True)).mean(0)


def _shares(z: Tensor, fresh: Tensor) -> tuple[tuple[int, float, float], ...]:
    """The fresh ids of the largest mean mass, at most SHARES of them. *Shape:* ``z`` ``(n, new_rows)``."""
    import torch

    mass = torch.exp(z[:, fresh] - torch.logsumexp(z, 1, keepdim=True))
    mean, largest = mass.mean(0), mass.max(0).values
    order = mean.argsort(descending=True, stable=True)[:SHARES]
    columns = (fresh[order].tolist(), mean[order].tolist(), largest[order].tolist())
    return tuple(zip(*columns, strict=True))


def _fresh_and_kept(correspondence: Correspondence, rows: int) -> tuple[Tensor, Tensor]:
    """The new ids, and a mask over all ids of those that the source has."""
    import torch

    fresh = torch.tensor(correspondence.fresh_ids)
    kept = torch.ones(rows, dtype=torch.bool)
    kept[fresh] = False
    return fresh, kept


def _bound(
    z: Tensor, old: Tensor, slack: Tensor, correspondence: Correspondence, promise: KLPromise | None, *, exact: bool
) -> tuple[Tensor | None, str]:
    """``(n,)`` the promised bound at each position, and its formula. ``slack`` is what rounding the rows can explain."""
    import torch

    if promise is None:
        return None, "none promised"
    fresh, kept = _fresh_and_kept(correspondence, z.shape[-1])
    count = len(fresh)
    if promise.kind == "mean" and exact:
        averaged = torch.tensor(correspondence.drawn_in_result if promise.averaged is None else promise.averaged)
        # The exact mean row's logit is the mean of the averaged rows' logits: no need to form the row.
        gap = (z[:, fresh] - z[:, averaged].mean(1, keepdim=True)).abs().max(1).values
        return torch.log1p(count / promise.rows_averaged * torch.exp(torch.minimum(gap, slack))), "log(1 + k/m)"
    largest = torch.exp(z[:, kept].max(1).values - old + slack)
    if promise.kind == "likeliest":
        return torch.log1p(count * largest.max().expand(len(largest))), "log(1 + k max p), p over all positions"
    return torch.log1p(count * largest), "log(1 + k max p)"


def _affine_fit(raw: Tensor, logits: Tensor, dtype: str) -> tuple[float, Tensor | float, float] | None:
    """``(c, offset, error)`` for which logits = c·raw + offset within the rounding of the logits; None when there is none.

    The offset is one value for each id (`final_logits_bias`), or 0.0; ids that the model masks are left out.
    """
    import torch

    seen = ~(logits < MASKED).any(0)
    a, b = raw[:, seen], logits[:, seen]
    error = 8 * UNIT_ROUNDOFF[dtype] * float(b.abs().max())
    plain = _slope(a, b)
    if plain is not None and float((plain * a - b).abs().max()) <= error:
        return plain, 0.0, error
    slope = _slope(a - a.mean(0), b - b.mean(0)) if len(a) > 1 else None
    if slope is None:
        return None
    rest = b - slope * a
    offset = torch.zeros(raw.shape[1], dtype=torch.float64)
    offset[seen] = rest.mean(0)
    return (slope, offset, error) if float((rest - rest.mean(0)).abs().max()) <= error else None


def _slope(a: Tensor, b: Tensor) -> float | None:
    norm = float((a * a).sum())
    slope = float((a * b).sum()) / norm if norm else 0.0
    return slope if slope > 0 else None


def _exact_logits(
    module: Table, hidden: Tensor, fit: tuple[float, Tensor | float, float], fresh: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits in float64 ``(n, new_rows)``, and ``(n,)`` how far rounding can have moved those of the fresh rows."""
    scale, offset, error = fit
    bias = getattr(module, "bias", None)
    z = _products(module.weight, hidden)
    slack = _row_rounding(module, hidden, fresh) + 1e-9
    if bias is not None:
        z += bias.double() * scale
        slack += UNIT_ROUNDOFF[str(bias.dtype)] * float((bias[fresh].double() * scale).abs().max())
    if not isinstance(offset, float):
        z += offset
        slack += error
    return z, slack


def _row_rounding(module: Table, hidden: Tensor, fresh: Tensor) -> Tensor:
    """``(n,)`` the largest |h|·|row| over fresh rows times the unit roundoff: what storing a row can move its logit by."""
    weight = module.weight
    unit = UNIT_ROUNDOFF[str(weight.dtype)] * (1 + 2.0**-7)  # relative to the stored value, not to the exact one
    return unit * (hidden.abs() @ weight[fresh].double().abs().T).max(1).values


def _old_rounding(module: Table, hidden: Tensor, kept: Tensor) -> Tensor:
    """``(n,)`` |h| times the norm of the longest old row times the unit roundoff: no combination of old rows is longer."""
    import torch

    weight = module.weight
    step = max(CHUNK // weight.shape[1], 1)
    norms = [
        part.double().norm(dim=1)[old].max()
        for part, old in zip(torch.split(weight, step), torch.split(kept, step), strict=True)
        if old.any()
    ]
    unit = UNIT_ROUNDOFF[str(weight.dtype)] * (1 + 2.0**-7)  # relative to the stored value, not to the exact one
    rounding: Tensor = unit * hidden.norm(dim=1) * max(norms)
    return rounding


def _products(weight: Tensor, hidden: Tensor) -> Tensor:
    """Product of hidden and weightᵀ in float64 ``(n, rows)``, a piece of the table at a time."""
    import torch

    step = max(CHUNK // weight.shape[1], 1)
    found = torch.empty(len(weight), len(hidden), dtype=torch.float64)
    wide = hidden.T.contiguous()
    for start in range(0, len(weight), step):
        torch.mm(weight[start : start + step].double(), wide, out=found[start : start + step])
    return found.T


def largest_row_norm(weight: Tensor) -> float:
    """The largest Euclidean norm of a row of ``weight``, a piece of the table at a time."""
    step = max(CHUNK // weight.shape[1], 1)
    starts = range(0, len(weight), step)
    return max(float(weight[start : start + step].float().norm(dim=1).max()) for start in starts)


def native_mass(logits: Tensor, correspondence: Correspondence) -> tuple[float, float]:
    """``(mean, max)`` probability mass of the fresh ids, from the model's own logits. *Shape:* ``(n, new_rows)``."""
    import torch

    fresh = torch.tensor(correspondence.fresh_ids)
    masses = torch.cat(
        [torch.exp(torch.logsumexp(rows[:, fresh], 1) - torch.logsumexp(rows, 1)) for rows in _widened(logits)]
    )
    largest = float(masses.max())
    return float(masses.mean()), min(largest, 1.0) if math.isfinite(largest) else largest


def _widened(logits: Tensor) -> Iterator[Tensor]:
    import torch

    step = max(CHUNK // logits.shape[-1], 1)
    for rows in torch.split(logits, step):
        yield rows.double()
