"""Which trainable parameters of an adapter of any kind get a gradient at step 0, and which only once the others have moved."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.parts import NAME
from graftkit.errors import few, plural
from graftkit.running.probes import Probe
from graftkit.running.reference import Reference
from graftkit.verification.adapters.liveness import backward, cut, with_trained_rows
from graftkit.verification.checks import Row

if TYPE_CHECKING:
    from torch import nn

#: How far each parameter is moved against its gradient before the second look, in units of the gradient's largest value.
STEP = 1e-2


@dataclass(frozen=True, slots=True)
class TunerGradients:
    """Trainable parameters by what was found, those of one kind in all layers taken together as ``name (count)``.

    ``waiting`` have no gradient at step 0 and one after a step of the others; ``without`` have none then either.
    """

    alive: int
    waiting: tuple[str, ...]
    without: tuple[str, ...]
    failures: tuple[str, ...]

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        yield Row("gradients at step 0", "alive" if not self.failures else "failed", plural(self.alive, "parameter"))
        for what, names in (("only from step 1 on", self.waiting), ("none at steps 0 and 1", self.without)):
            if names:
                yield Row("gradients", what, few(names))


def as_it_runs(peft_model: Any, reference: Reference) -> tuple[Any, Reference, int]:
    """The model to run, what of the reference it can be compared with, and how many learnt vectors it puts before its input.

    A learnt prompt stands outside of the base, and cached decoding behind one is generation's business alone.
    """
    config = peft_model.active_peft_config
    if not config.is_prompt_learning:
        return peft_model.get_base_model(), reference, 0
    whole = [part for part in reference.parts if not part.steps]
    return peft_model, dataclasses.replace(reference, parts=whole), config.num_virtual_tokens


def tuner_gradients(
    peft_model: Any, model: nn.Module, probe: Probe, extra_inputs: frozenset[str], seed: int
) -> TunerGradients:
    """Differentiate a random linear functional of the outputs of ``model``, move what has a gradient, and do it again.

    The adapter is no longer what it was afterwards.
    """
    import torch

    if peft_model.active_peft_config.is_prompt_learning:
        for parameter in peft_model.prompt_encoder[NAME].parameters():
            parameter.requires_grad_(requires_grad=True)
    trained = {name: parameter for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    probe = with_trained_rows(model, cut(probe))
    backward(model, probe, extra_inputs, seed)
    alive = _alive(trained)
    with torch.no_grad():
        for name in alive:
            parameter = trained[name]
            parameter -= STEP * parameter.grad / parameter.grad.abs().max()
    peft_model.zero_grad(set_to_none=True)
    backward(model, probe, extra_inputs, seed)
    later = _alive(trained) | alive
    peft_model.zero_grad(set_to_none=True)
    failures = () if alive else ("gradients: no parameter of the adapter gets one at step 0: it would never learn",)
    return TunerGradients(len(alive), _kinds(later - alive), _kinds(trained.keys() - later), failures)


def _alive(parameters: dict[str, nn.Parameter]) -> set[str]:
    return {name for name, p in parameters.items() if p.grad is not None and bool((p.grad != 0).any())}


def _kinds(names: Iterable[str]) -> tuple[str, ...]:
    """The last parts of the names, without the adapter's own, and how often each occurs."""
    short = (re.sub(rf"\.{NAME}\b", "", name) for name in names)
    counts = Counter(".".join([part for part in name.split(".") if not part.isdigit()][-3:]) for name in short)
    return tuple(f"{name} ({count})" for name, count in sorted(counts.items()))
