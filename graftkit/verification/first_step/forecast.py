"""What one optimiser step does to the old outputs, forecast by one Jacobian-vector product and then measured.

AdamW's first step from rest is Δθ = -lr·g/(|g| + eps) - lr·wd·θ, since both moments are bias-corrected to g and g².
To first order the logits move by Δz = lr·J·d with d = Δθ/lr, and the distribution by KL(p ‖ p') = Var_p(Δz)/2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.verification.inputs import feed
from graftkit.verification.probes import Probe

EPSILON, WEIGHT_DECAY = 1e-8, 0.01

#: Learning rates at which the step is measured beside its forecast.
LEARNING_RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)

#: Above this relative error the forecast no longer describes the step, so that the step is no small one.
TOLERANCE = 0.2

#: A KL below this, in nats, is the rounding of float32 logits.
FLOOR = 1e-9


@dataclass(frozen=True, slots=True)
class StepFigure:
    """One learning rate: the mean KL(before ‖ after) in nats over the old domain, forecast and measured."""

    learning_rate: float
    forecast: float
    measured: float

    @property
    def error(self) -> float:
        """|forecast - measured| over the measured one."""
        return abs(self.forecast - self.measured) / max(self.measured, FLOOR)


def direction(parameters: Mapping[str, Any], gradients: Mapping[str, Any]) -> dict[str, Any]:
    """AdamW's first step over the learning rate; only the decay where a parameter has a gradient of zero."""
    return {
        name: -gradient / (gradient.abs() + EPSILON) - WEIGHT_DECAY * parameters[name].detach()
        for name, gradient in gradients.items()
    }


def old_logits(model: Any, batch: Probe, made: frozenset[str], ids: int) -> Callable[[Mapping[str, Any]], Any]:
    """A function from parameters to the logits ``(places, ids)`` of the unmasked places over the old ids."""
    import torch

    inputs = feed(model, batch, made)
    inputs = {**inputs, "output_hidden_states": False} | ({"use_cache": False} if model.can_generate() else {})

    def run(parameters: Mapping[str, Any]) -> Any:
        logits = torch.func.functional_call(model, dict(parameters), kwargs=inputs)["logits"]
        return logits[:, : batch.ids.shape[1], :ids][batch.mask[:, : logits.shape[1]].bool()]

    return run


def jacobian_vector(run: Callable[[Mapping[str, Any]], Any], at: Mapping[str, Any], along: Mapping[str, Any]) -> Any:
    """The derivative of ``run`` at ``at`` along ``along``: forward mode, or two backward passes where an operator lacks it."""
    import torch

    names = list(along)
    fixed = {name: value.detach() for name, value in at.items()}

    def of(*moving: Any) -> Any:
        return run({**fixed, **dict(zip(names, moving, strict=True))})

    primals, tangents = tuple(fixed[name] for name in names), tuple(along[name] for name in names)
    try:
        return torch.func.jvp(of, primals, tangents)[1]
    except (NotImplementedError, RuntimeError):
        leaves = tuple(value.clone().requires_grad_() for value in primals)
        logits = of(*leaves)
        probe = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(logits, leaves, probe, create_graph=True)
        return torch.autograd.grad(pulled, probe, tangents)[0]


def forecast(
    run: Callable[[Mapping[str, Any]], Any], parameters: Mapping[str, Any], along: Mapping[str, Any]
) -> Iterator[StepFigure]:
    """Yield for each learning rate what is forecast and what the step really does."""
    import torch

    change = jacobian_vector(run, parameters, along).double()
    with torch.no_grad():
        before = run(parameters).double().log_softmax(-1)
        p = before.exp()
        variance = (p * change.square()).sum(-1) - (p * change).sum(-1).square()
        for rate in LEARNING_RATES:
            stepped = {
                name: value + rate * along[name] if name in along else value for name, value in parameters.items()
            }
            after = run(stepped).double().log_softmax(-1)
            measured = (p * (before - after)).sum(-1).mean()
            yield StepFigure(rate, float(rate**2 * variance.mean() / 2), float(measured))


def ceiling(figures: list[StepFigure]) -> float | None:
    """The largest learning rate below which every forecast above the floor is within the tolerance; None where none is."""
    largest = None
    for figure in figures:
        if figure.measured < FLOOR:
            continue
        if figure.error > TOLERANCE:
            break
        largest = figure.learning_rate
    return largest
