"""Which parts of a fresh adapter get a gradient at step 0, measured with a random linear functional of the outputs.

A task's loss would not do: a head of zeros hides every gradient behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.parts import NAME, LoraPart, lora_parts
from graftkit.errors import few
from graftkit.running.forward import flatten
from graftkit.running.inputs import feed
from graftkit.verification.checks import Row

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.running.probes import Probe

#: Tokens of the one batch that gradients are taken on.
TOKENS = 256


@dataclass(frozen=True, slots=True)
class Liveness:
    """Targets by what was found. ``alive``: B learns, and A does as soon as B has moved.

    ``unreached``: the probe does not run them; ``blocked``: no gradient arrives at them, in the base either;
    ``unrouted``: experts that no token was sent to, by target; ``failures`` are sentences.
    """

    alive: int
    unreached: tuple[str, ...]
    blocked: tuple[str, ...]
    unrouted: dict[str, int]
    failures: tuple[str, ...]

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        result = "failed" if self.failures else "alive" if self.alive else "not seen"
        yield Row("gradients at step 0", result, f"{self.alive} targets")
        for what, names in (("not run by the probe", self.unreached), ("no gradient arrives", self.blocked)):
            if names:
                yield Row("gradients", what, few(names))
        for name, count in list(self.unrouted.items())[:2]:
            yield Row("gradients", "not routed to", f"{count} experts of {name}")


@dataclass(slots=True)
class _Seen:
    """What one layer met in the pass: whether it ran, and whether a gradient other than zero came back."""

    ran: bool = False
    arrived: bool = False

    def forward(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.ran = True
        if hasattr(output, "register_hook") and output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.arrived = self.arrived or bool((gradient != 0).any())


def liveness(model: Any, probe: Probe, extra_inputs: frozenset[str], seed: int) -> Liveness:
    """One forward and backward pass of a peft model on ``probe``, with its new tokens' ids put into it.

    The model's gradients are cleared again.
    """
    inner = model.get_base_model()
    layers = {part.path: part for part in lora_parts(inner)}
    seen = {name: _Seen() for name in layers}
    hooks = [part.module.register_forward_hook(seen[name].forward) for name, part in layers.items()]
    try:
        backward(inner, with_trained_rows(inner, cut(probe)), extra_inputs, seed)
    finally:
        for hook in hooks:
            hook.remove()
    unreached = [name for name in layers if not seen[name].ran]
    blocked = [name for name in layers if seen[name].ran and not seen[name].arrived]
    unrouted, failures, alive = {}, [], 0
    for name, part in layers.items():
        if not seen[name].arrived:
            continue
        found = list(_faults(part))
        failures += found
        alive += not found
        idle = _idle_experts(part)
        if idle:
            unrouted[name] = idle
    if blocked and not unreached and not any(_any(parameter.grad) for parameter in model.parameters()):
        failures.append(
            f"gradients: none arrives at {few(blocked)} nor at anything else that the adapter trains: it would never learn, as"
            " behind zeros of the base that are frozen"
        )
    model.zero_grad(set_to_none=True)
    return Liveness(alive, tuple(unreached), tuple(blocked), unrouted, tuple(failures))


def cut(probe: Probe) -> Probe:
    """A small batch of the probe's first rows and tokens."""
    rows = max(TOKENS // probe.ids.shape[1], 1)
    return dataclasses.replace(probe, ids=probe.ids[:rows, :TOKENS], mask=probe.mask[:rows, :TOKENS], steps=0)


def with_trained_rows(model: nn.Module, probe: Probe) -> Probe:
    """The probe with ids of trained rows in unmasked places of its first row, so that they are looked up."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    layers = [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]
    ids = sorted({int(i) for layer in layers for i in layer.token_indices.get(NAME, ())})
    places = probe.mask[0].nonzero().flatten()[1:-1]
    count = min(len(ids), len(places))
    if not count:
        return probe
    changed = probe.ids.clone()
    changed[0, places[:count]] = changed.new_tensor(ids[:count])
    return dataclasses.replace(probe, ids=changed)


def backward(model: nn.Module, probe: Probe, extra_inputs: frozenset[str], seed: int) -> None:
    """Differentiate Σ ⟨R, output⟩ over the last hidden states and whatever else comes out, R normal."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        outputs = flatten(model(**feed(model, probe, extra_inputs)))
        last: dict[str, Tensor] = {}
        for name, value in outputs.items():
            stem, _, index = name.rpartition(".")
            last[stem if index.isdigit() else name] = value
        total: Any = sum(
            (torch.randn(value.shape, generator=generator) * value.float()).mean()
            for value in last.values()
            if value.requires_grad
        )
        if isinstance(total, torch.Tensor):
            total.backward()  # type: ignore[no-untyped-call]


def _faults(part: LoraPart) -> Iterator[str]:
    """An adapter of a table has its zeros in A, and so has MiCA; all others have them in B."""
    a, b = ("A", part.a), ("B", part.b)
    (zero, first), (other, second) = (a, b) if part.on_table else (b, a)
    if not (second != 0).any() and bool((first != 0).any()):
        zero, first, other, second = other, second, zero, first
    name = part.path
    if not _any(first.grad):
        yield f"gradients: {zero} of {name} gets none at step 0, although one arrives there: it would never learn"
    starts_zero = not (first != 0).any()
    if starts_zero and _any(second.grad):
        yield f"gradients: {other} of {name} has one at step 0, although {zero} is zero"
    if not starts_zero and second.requires_grad and not _any(second.grad):
        yield f"gradients: {other} of {name} gets none at step 0: it would never learn"


def _any(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient != 0).any())


def _idle_experts(part: LoraPart) -> int:
    """How many of a fused layer's experts got no gradient. Columns of B are ranks by experts."""
    gradient = part.b.grad
    if part.experts < 2 or gradient is None:
        return 0
    return part.experts - int((gradient.view(gradient.shape[0], -1, part.experts) != 0).any(0).any(0).sum())
