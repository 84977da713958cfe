"""The floor of a float64 run: what two runs that are equal over the real numbers still differ by.

Two measurements, since neither sees all. *Rows alone*: each row of a batch by itself, where only the order of summation
differs. It cannot see a float32 cast, for a rounding gives the same for the same input. *Bend*: the embeddings, and what
the model is fed that is no id (pixels), are nudged by a relative delta up and down, and f(x + delta) + f(x - delta) - 2 f(x)
is taken. A smooth function leaves delta² ~ 1e-18 and
float64's own noise; a float32 operation anywhere on the way turns the nudge, which is far below its unit roundoff,
into a staircase whose steps show.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graftkit.running.float64 import float64
from graftkit.running.forward import outputs_of
from graftkit.running.probes import Probe
from graftkit.verification.lens.audit import Audit
from graftkit.verification.lens.gap import gap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The relative nudge: well under float32's unit roundoff of 6e-8, well over float64's of 1e-16.
NUDGE = 1e-9

#: A difference counts from this many floors on.
MARGIN = 100

#: No floor is taken to be lower: a unit in the last place of float64, of a value four times the RMS.
LEAST = 4 * torch.finfo(torch.float64).eps

#: Runs what it is given, which runs a forward, and returns the outputs.
Wrap = Callable[[Callable[[], dict[str, Tensor]]], dict[str, Tensor]]


def _unwrapped(run: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    return run()


@dataclass(frozen=True, slots=True)
class Floor:
    """Relative differences, as :func:`~graftkit.verification.lens.gap.gap` has them; ``bend`` is None where no nudge came through.

    ``effect`` is how far the nudge itself moved the outputs. ``narrow`` names each operator that returned less than float64,
    with the module it ran in and how often.
    """

    rows_alone: float
    bend: float | None
    effect: float
    narrow: tuple[tuple[str, str, int], ...]
    derived: ClassVar[tuple[str, ...]] = ("height", "threshold")

    @property
    def height(self) -> float:
        """The larger of the two."""
        return max(self.rows_alone, self.bend or 0.0, LEAST)

    @property
    def threshold(self) -> float:
        """The smallest difference that is called one."""
        return MARGIN * self.height


class _Nudge(TorchFunctionMode):
    """Multiplies what every embedding gives by ``1 + delta·n``, n standard normal and the same in every run."""

    def __init__(self, delta: float) -> None:
        super().__init__()
        self._delta, self._generator = delta, torch.Generator().manual_seed(1)

    def elsewhere(self, path: str) -> Callable[[nn.Module], contextlib.AbstractContextManager[Callable[[], Tensor]]]:
        """What another rank enters around the block ``path`` that it runs, with the numbers drawn so far."""
        del path
        return functools.partial(_nudged_block, self._delta, self._generator.get_state())

    def told(self, found: Tensor) -> None:
        """Go on behind the numbers that were drawn there."""
        self._generator.set_state(found)

    @contextlib.contextmanager
    def from_state(self, state: Tensor) -> Iterator[Callable[[], Tensor]]:
        """Nudge inside, from that state of the random numbers on; what is yielded gives the state behind it."""
        self._generator.set_state(state)
        with self:
            yield self._generator.get_state

    def inputs(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A hook before the model's forward that nudges what floats of its inputs."""
        floating = (torch.is_tensor(value) and value.is_floating_point() for value in kwargs.values())
        nudged = zip(kwargs.items(), floating, strict=True)
        return args, {name: self._nudged(value) if wanted else value for (name, value), wanted in nudged}

    def _nudged(self, value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=self._generator, dtype=torch.float64)
        return value * (1 + self._delta * noise.to(value.device))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") != "embedding":
            return found
        return self._nudged(found)


def _nudged_block(
    delta: float, state: Tensor, block: nn.Module
) -> contextlib.AbstractContextManager[Callable[[], Tensor]]:
    del block
    return _Nudge(delta).from_state(state)


def measure_floor(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str], wrap: Wrap = _unwrapped) -> Floor:
    """Measure on one batch without padding: five forwards of it, one of them audited, which runs inside ``wrap``."""
    with float64(model):
        with Audit(model) as audit:
            plain = wrap(lambda: outputs_of(model, probe, extra_inputs))
        alone = [outputs_of(model, _row(probe, index), extra_inputs) for index in range(len(probe.ids))]
        apart = [
            gap(value[index : index + 1], row[name])
            for name, value in plain.items()
            for index, row in enumerate(alone)
            if len(value) == len(probe.ids) and row[name].shape == value[index : index + 1].shape
        ]
        up, down = (_nudged(model, probe, extra_inputs, sign * NUDGE) for sign in (1, -1))
    effect = max(gap(value, up[name]) for name, value in plain.items())
    bend = max(gap(value, value + ((up[name] - value) + (down[name] - value))) for name, value in plain.items())
    narrow = tuple((operator, module, count) for (operator, module), count in audit.narrow.items())
    return Floor(max(apart, default=0.0), bend if effect > NUDGE / 100 else None, effect, narrow)


def _row(probe: Probe, index: int) -> Probe:
    part = slice(index, index + 1)
    return replace(probe, ids=probe.ids[part], mask=probe.mask[part])


def _nudged(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str], delta: float) -> dict[str, Tensor]:
    nudge = _Nudge(delta)
    hook = model.register_forward_pre_hook(nudge.inputs, with_kwargs=True)
    try:
        with nudge:
            return outputs_of(model, probe, extra_inputs)
    finally:
        hook.remove()
