"""The graph of a block that another rank runs: it stays there, and gradients go there and come back.

Bits depend on the order in which the gradients of a tensor are added up that several operators take, such as the residual stream, or an
encoder's states that every block of a decoder attends to. So what comes back is not their sum but each one, in the order in which the
engine met them, and rank 0's engine adds them where it would have met them in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from graftkit.running.split.interrupts import CannotSplit

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

#: Takes the gradients of what a block gave, None where it has none, and returns those of what it was given, one for each use.
Pull = Callable[[Sequence["Tensor | None"]], Sequence["Tensor | None"]]


class _Elsewhere(torch.autograd.Function):
    """A block as rank 0's engine sees it: one node."""

    @staticmethod
    def forward(ctx: Any, pull: Pull, given: Sequence[Tensor], *uses: Tensor) -> tuple[Tensor, ...]:
        del uses
        ctx.pull = pull
        ctx.set_materialize_grads(False)
        return tuple(given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise CannotSplit("what runs it asks for derivatives of gradients")
        return (None, None, *ctx.pull(gradients))


def linked(given: Sequence[Tensor], uses: Sequence[Tensor], pull: Pull) -> list[Tensor]:
    """What a block gave, with a graph that asks ``pull``; ``uses`` are the tensors that it was given, each as often as it is used."""
    return list(_Elsewhere.apply(pull, given, *uses)) if uses else list(given)  # type: ignore[no-untyped-call]


class Graph:
    """The graph of a block that was run here, from the tensors that it was given, its ``leaves``, to those that it ``gave``."""

    def __init__(self, leaves: Sequence[Tensor], gave: Sequence[Tensor]) -> None:
        self._leaves, self._gave = leaves, gave
        self._uses: list[list[tuple[Node, int]]] = [[] for _ in leaves]
        places = {id(leaf): place for place, leaf in enumerate(leaves)}
        for node, index, variable in _ends(gave):
            if id(variable) in places:
                self._uses[places[id(variable)]].append((node, index))

    @property
    def uses(self) -> list[int]:
        """How often each leaf is used."""
        return [len(uses) for uses in self._uses]

    def pull(self, gradients: Sequence[Tensor | None]) -> list[list[Tensor | None]]:
        """The gradients of each leaf, one for each use in the order of the engine.

        A graph is pulled once.
        """
        met: list[list[Tensor]] = [[] for _ in self._leaves]
        hooks = [
            node.register_hook(lambda found, _, index=index, place=place: _note(met[place], found[index]))
            for place, uses in enumerate(self._uses)
            for node, index in uses
        ]
        pairs = [(one, gradient) for one, gradient in zip(self._gave, gradients, strict=True) if gradient is not None]
        used = [leaf for leaf, uses in zip(self._leaves, self._uses, strict=True) if uses]
        try:
            if pairs and used:
                torch.autograd.grad([one for one, _ in pairs], used, [one for _, one in pairs], allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        rest = [len(uses) - len(found) for uses, found in zip(self._uses, met, strict=True)]
        return [[*found, *[None] * more] for found, more in zip(met, rest, strict=True)]


def _note(met: list[Tensor], gradient: Tensor | None) -> None:
    if gradient is not None:
        met.append(gradient)


def _ends(gave: Sequence[Tensor]) -> Iterator[tuple[Node, int, Tensor]]:
    """Each edge of a graph that ends in a leaf: the node that it leaves, its place there, and the leaf."""
    waiting = [one.grad_fn for one in gave if one.grad_fn is not None]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for index, (after, _) in enumerate(node.next_functions):
            variable = getattr(after, "variable", None)
            if variable is not None:
                yield node, index, variable
            elif after is not None:
                waiting.append(after)
