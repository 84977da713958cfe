"""What the lens can see: one value moved to its neighbour in its own dtype, at any place, and why where it does not show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from graftkit.running.float64 import float64
from graftkit.running.forward import outputs_of
from graftkit.running.probes import Probe
from graftkit.verification.lens.trace import Record, Trace, compare, record

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

#: The integer of the same width: one more is the neighbour that lies farther from zero.
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

#: What is added to a bias to see whether anything depends on it.
SHIFT = 1.0


@dataclass(frozen=True, slots=True)
class Flip:
    """One place of one parameter and what moving it by one unit in the last place did, relative to the RMS, in float64.

    ``outputs`` is the largest difference of the model's own outputs, ``inside`` that of any module's. ``reason`` says why the
    outputs do not show it; empty where they do.
    """

    name: str
    place: tuple[int, ...]
    step: float
    outputs: float
    inside: float
    reason: str


def random_places(model: nn.Module, count: int, generator: torch.Generator) -> Iterator[tuple[str, tuple[int, ...]]]:
    """``count`` places: every other one is drawn from all values alike, the rest from one tensor after another."""
    parameters = dict(model.named_parameters())
    names = list(parameters)
    sizes = torch.tensor([parameter.numel() for parameter in parameters.values()], dtype=torch.float64)
    for index in range(count):
        which = int(torch.multinomial(sizes, 1, generator=generator)) if index % 2 else index // 2 % len(names)
        shape = parameters[names[which]].shape
        yield names[which], tuple(int(torch.randint(size, (), generator=generator)) for size in shape)


class Reach:
    """Keeps what ``model`` gives on ``parts`` in float64 and tries flips against it. The model is left as it was."""

    def __init__(
        self, model: PreTrainedModel, parts: list[Probe], extra_inputs: frozenset[str], threshold: float
    ) -> None:
        self._model, self._parts, self._made, self._threshold = model, parts, extra_inputs, threshold
        with float64(model):
            self._kept: list[Record] = [
                record(model, partial(outputs_of, model, part, extra_inputs))[0] for part in parts
            ]

    def flip(self, name: str, place: tuple[int, ...]) -> Flip:
        """Move the value at ``place`` one unit away from zero, look, and move it back."""
        parameter = self._model.get_parameter(name)
        bits = parameter.data.view(BITS[parameter.element_size()])
        before = float(parameter.data[place])
        bits[place] += 1
        step = abs(float(parameter.data[place]) - before)
        trace = self._look()
        bits[place] -= 1
        by_module = trace.by_module()
        outputs, inside = by_module.get("", 0.0), max(by_module.values())
        seen = [module for module, largest in by_module.items() if largest > self._threshold]
        reason = "" if outputs > self._threshold else self._reason(name, place, step, inside, seen)
        return Flip(name, place, step, outputs, inside, reason)

    def _look(self) -> Trace:
        trace = Trace()
        with float64(self._model):
            for part, kept in zip(self._parts, self._kept, strict=True):
                run = partial(outputs_of, self._model, part, self._made)
                compare(self._model, run, dict(kept), trace, part.name)
        return trace

    def _reason(self, name: str, place: tuple[int, ...], step: float, inside: float, seen: list[str]) -> str:
        parameter = self._model.get_parameter(name)
        owner = name.rpartition(".")[0]
        if step < torch.finfo(parameter.dtype).smallest_normal:
            return "zero or subnormal value: its neighbour is no farther than the smallest normal number"
        if inside == 0:
            return self._unused(owner, place, parameter)
        if parameter.ndim == 1 and self._shifts_nothing(name, place):
            return "constant that softmax cancels: a key bias"
        if seen == [owner]:
            return "unit that is off on every probe"
        return "effect below the threshold"

    def _shifts_nothing(self, name: str, place: tuple[int, ...]) -> bool:
        parameter = self._model.get_parameter(name)
        before = parameter.data[place].clone()
        parameter.data[place] += SHIFT
        outputs = self._look().by_module().get("", 0.0)
        parameter.data[place] = before
        return outputs <= self._threshold

    def _unused(self, owner: str, place: tuple[int, ...], parameter: nn.Parameter) -> str:
        """Why a value changes nothing at all: what its module was given tells."""
        inputs = self._inputs(owner)
        if not inputs:
            return "module that no probe calls"
        if not inputs[0].is_floating_point():
            held = any(bool((ids == place[0]).any()) for ids in inputs)
            return "no effect on any module" if held else "row of an id or position that no probe holds"
        columns = [
            place[axis] for axis in (0, -1) if parameter.ndim == 2 and parameter.shape[axis] == inputs[0].shape[-1]
        ]
        if any(all(not bool(value[..., column].any()) for value in inputs) for column in columns):
            return "input that is zero on every probe: a dead unit before it"
        return "expert that no token was routed to" if parameter.ndim == 3 else "no effect on any module"

    def _inputs(self, owner: str) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        hook = self._model.get_submodule(owner).register_forward_pre_hook(lambda _, args: found.extend(args[:1]))
        with float64(self._model):
            for part in self._parts:
                outputs_of(self._model, part, self._made)
        hook.remove()
        return found
