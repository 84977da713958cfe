"""The first step of an adapter: the base is frozen, and the step lies in what the adapter trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from graftkit.architecture.correspondence import Correspondence
from graftkit.checkpoint.adapter import AdapterPlace, adapter_at
from graftkit.errors import few
from graftkit.running.forward import load, undisturbed
from graftkit.running.inputs import feed
from graftkit.running.peft_loading import adapt, peft_config
from graftkit.running.place import Place
from graftkit.running.reference import timed
from graftkit.verification.first_step.report import FirstStepReport
from graftkit.verification.first_step.task import differentiable
from graftkit.verification.first_step.training import Training, first_texts
from graftkit.verification.promises import Scope

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from graftkit.running.probes import Probe

FROZEN = "the base is frozen"


def adapter_first_step(
    base: Place,
    adapter: AdapterPlace,
    correspondence: Correspondence,
    seed: int,
    scope: Scope,
    tell: Callable[[float], None],
) -> FirstStepReport:
    """Take the first step of training ``adapter`` on ``base``, in float32: what moves, when, and what it does to the outputs.

    Raises:
        VerificationFailed: the base does not load, or its forward cannot be differentiated.
    """
    seconds: dict[str, float] = {}
    if peft_config(adapter_at(adapter)).is_prompt_learning:
        why = "a prompt is no part of the model's weights"
        return FirstStepReport(None, FROZEN, {}, 0, (), None, why, seconds, ())
    with undisturbed(), differentiable():
        with timed(seconds, "load"):
            loaded = adapt(load(base).model, adapter, trainable=True)
            model: PreTrainedModel = loaded.float().eval().get_base_model()
        training = Training.of_result(model, first_texts(model, base, None, seed), correspondence)
        tell(0.3)
        trained = [name for name, value in model.named_parameters() if value.requires_grad]
        with timed(seconds, "reach"):
            idle = not_run(model, training.task, training.extra_inputs, trained)
            moves = training.moves({name: None for name in trained if name not in idle})
        tell(0.6)
        with timed(seconds, "forecast"):
            steps = training.forecast() if scope.same_outputs else ()
        tell(1.0)
    why = "" if scope.same_outputs else "what the adapter is made for has other outputs than the source"
    return training.report(None, FROZEN, moves, steps, why, seconds, tuple(_dead(moves)), tuple(idle))


def not_run(model: PreTrainedModel, batch: Probe, extra_inputs: frozenset[str], names: list[str]) -> list[str]:
    """Those of the parameters ``names`` whose adapted module the batch does not run: an image tower, say."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    ran: set[str] = set()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))}
    hooks = [m.register_forward_hook(lambda *_, name=name: ran.add(name)) for name, m in layers.items()]
    try:
        with torch.no_grad():
            model(**feed(model, batch, extra_inputs))
    finally:
        for hook in hooks:
            hook.remove()
    alive = {id(value) for name in ran for value in layers[name].parameters()}  # also where tied modules share it
    idle = {id(value) for module in layers.values() for value in module.parameters()} - alive
    return [name for name in names if id(model.get_parameter(name)) in idle]


def _dead(moves: Mapping[str, int | None]) -> Iterator[str]:
    dead = [name for name, step in moves.items() if step is None]
    if dead:
        yield f"first step: {few(dead)} of the adapter: no gradient from the task's loss within three steps"
