"""What one optimiser step does to the old outputs, forecast by one Jacobian-vector product and then measured.

AdamW's first step from rest is Δθ = -lr·g/(|g| + eps) - lr·wd·θ, since both moments are bias-corrected to g and g².
To first order the outputs move by Δz = lr·J·d with d = Δθ/lr: logits move their distribution by KL(p ‖ p') = Var_p(Δz)/2,
hidden states move by ‖Δz‖/‖z‖.

What rounding alone does is measured beside it: every parameter is moved to one of its two neighbours in float32 at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graftkit.architecture.capabilities import takes
from graftkit.running.inputs import feed
from graftkit.running.split.together import at_owner

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.running.loss import Columns, Observed
    from graftkit.running.probes import Probe

EPSILON, WEIGHT_DECAY = 1e-8, 0.01

#: Learning rates at which the step is measured beside its forecast.
LEARNING_RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)

#: Above this relative error the forecast no longer describes the step, so that the step is no small one.
TOLERANCE = 0.2


@dataclass(frozen=True, slots=True)
class StepFigure:
    """One learning rate: how far the old outputs move, forecast and measured, and ``floor``, how far rounding moves them.

    Of logits it is the mean KL(before ‖ after) in nats, of hidden states the relative root mean square of the change.
    """

    learning_rate: float
    forecast: float
    measured: float
    floor: float = 0.0
    derived: ClassVar[tuple[str, ...]] = ("error",)

    @property
    def error(self) -> float:
        """|forecast - measured| over the measured one, or over the floor where that is larger."""
        apart, most = abs(self.forecast - self.measured), max(self.measured, self.floor)
        return apart / most if most else math.inf if apart else 0.0


def direction(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """AdamW's first step over the learning rate; only the decay where a parameter has a gradient of zero."""
    return {name: at_owner(_direction, gradient, parameters[name].detach()) for name, gradient in gradients.items()}


def _direction(gradient: Tensor, values: Tensor) -> Tensor:
    return -gradient / (gradient.abs() + EPSILON) - WEIGHT_DECAY * values


def old_outputs(
    model: PreTrainedModel, batch: Probe, extra_inputs: frozenset[str], seen: Observed, ids: Columns
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A function from parameters to what is seen at the unmasked places, ``(places, width)``; of logits over the old ids."""
    import torch

    inputs: dict[str, Any] = feed(model, batch, extra_inputs)
    if "output_hidden_states" in inputs and seen.name != "hidden_states":
        inputs["output_hidden_states"] = False
    if model.can_generate() or takes(model.forward, "use_cache"):
        inputs["use_cache"] = False

    def run(parameters: Mapping[str, Tensor]) -> Tensor:
        return seen.values(torch.func.functional_call(model, dict(parameters), kwargs=inputs), batch, ids)

    return run


def jacobian_vector(
    run: Callable[[Mapping[str, Tensor]], Tensor], at: Mapping[str, Tensor], along: Mapping[str, Tensor]
) -> Tensor:
    """The derivative of ``run`` at ``at`` along ``along``: forward mode, or two backward passes where an operator lacks it."""
    import torch

    names = list(along)
    fixed = {name: value.detach() for name, value in at.items()}

    def of(*moving: Tensor) -> Tensor:
        return run({**fixed, **dict(zip(names, moving, strict=True))})

    primals, tangents = tuple(fixed[name] for name in names), tuple(along[name] for name in names)
    try:
        return torch.func.jvp(of, primals, tangents)[1]  # type: ignore[no-any-return]
    except (NotImplementedError, RuntimeError):
        leaves = tuple(value.clone().requires_grad_() for value in primals)
        logits = of(*leaves)
        probe = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(logits, leaves, probe, create_graph=True)
        return torch.autograd.grad(pulled, probe, tangents)[0]


def forecast(
    run: Callable[[Mapping[str, Tensor]], Tensor], parameters: Mapping[str, Tensor], along: Mapping[str, Tensor],
    *, distributions: bool = True,
) -> Iterator[StepFigure]:  # fmt: skip
    """Yield for each learning rate what is forecast and what the step really does, to ``distributions`` or to plain values."""
    import torch

    change = jacobian_vector(run, parameters, along).double()
    measure = _divergence if distributions else _relative_change
    with torch.no_grad():
        before = run(parameters).double()
        unit = _unit(before, change, distributions=distributions)
        floor = measure(before, run(_neighbours(parameters)).double())
        for rate in LEARNING_RATES:
            stepped = {
                name: at_owner(_stepped, value, along[name], rate) if name in along else value
                for name, value in parameters.items()
            }
            measured = measure(before, run(stepped).double())
            yield StepFigure(rate, unit * rate ** (2 if distributions else 1), measured, floor)


def _unit(before: Tensor, change: Tensor, *, distributions: bool) -> float:
    """The forecast at a learning rate of 1: half the variance of the change under the distribution, or its relative size."""
    if not distributions:
        return float(change.norm()) / _size(before)
    p = before.softmax(-1)
    variance = (p * change.square()).sum(-1) - (p * change).sum(-1).square()
    return float(variance.mean() / 2)


def _divergence(before: Tensor, after: Tensor) -> float:
    before, after = before.log_softmax(-1), after.log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


def _relative_change(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm()) / _size(before)


def _size(values: Tensor) -> float:
    return float(values.norm()) or 1.0


def _neighbours(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each value moved to the next larger or smaller one of its dtype, at random and the same each time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, value in parameters.items():
        up = torch.randint(2, value.shape, generator=generator, dtype=torch.int8).bool().to(value.device)
        found[name] = at_owner(_neighbour, value, up) if value.is_floating_point() else value
    return found


def _neighbour(value: Tensor, up: Tensor) -> Tensor:
    import torch

    ends = torch.full_like(value, math.inf)
    return torch.nextafter(value, torch.where(up, ends, -ends))


def _stepped(value: Tensor, along: Tensor, rate: float) -> Tensor:
    return value + rate * along


def ceiling(figures: Sequence[StepFigure]) -> float | None:
    """The largest learning rate below which every forecast that rounding does not hide is within the tolerance, or None."""
    largest = None
    for figure in figures:
        if figure.measured < figure.floor:
            continue
        if figure.error > TOLERANCE:
            break
        largest = figure.learning_rate
    return largest
