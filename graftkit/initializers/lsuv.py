"""Layer-sequential unit variance: new layers scaled on data, one after the other, in the order in which data meets them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.initializers.fans import CONV1D, LINEAR, Layout, conv
from graftkit.initializers.orthogonal import orthogonal
from graftkit.initializers.seeding import generator_for

if TYPE_CHECKING:
    import torch
    from torch import nn

    Batch = torch.Tensor | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scaled:
    """What became of one layer: the variance of its outputs with an orthogonal weight and at the end, and the forwards run."""

    before: float
    after: float
    forwards: int


def lsuv(
    module: torch.nn.Module, batch: Batch | Sequence[Batch], *,
    only: Collection[str] | None = None, seed: int = 0, tolerance: float = 0.1, most: int = 10,
) -> dict[str, Scaled]:  # fmt: skip
    """Initialise every linear map and convolution of a *new* ``module``, in place, until its outputs have variance one.

    Each weight becomes orthogonal, its bias zero; then the weights are divided by the standard deviation of their outputs
    on ``batch`` until ``|Var - 1| < tolerance``, first layer first (Mishkin and Matas 2016). Never use it on a module that
    holds trained weights: it overwrites them.

    Args:
        module: called as ``module(batch)``, or ``module(**batch)`` with a mapping; without dropout, as in evaluation.
        batch: real inputs, as many as fit; their own scale is what the first layer is fitted to. A list is run one by one.
        only: names of the layers that are new, where others hold trained weights; None means every layer.
        seed: of the orthogonal weights, together with each layer's name.
        tolerance: the largest deviation from variance one.
        most: how many forwards a layer may take.

    Returns:
        what became of each layer, by name, in the order of the forward.

    Raises:
        ValueError: a layer that the forward does not reach, or whose outputs do not vary, are not finite, or do not come
            within the tolerance.
    """
    import torch

    batches = batch if isinstance(batch, list | tuple) else [batch]

    def run() -> None:
        for one in batches:
            _ = module(**one) if isinstance(one, Mapping) else module(one)

    layers = {name: layer for name, layer in layers_of(module) if only is None or name in only}
    with torch.no_grad(), _evaluation(module):
        order = _order_of_calls(layers, run)
        for name, layer in layers.items():
            weight = layer.weight
            made = orthogonal(tuple(weight.shape), weight.dtype, _layout(layer), generator_for(seed, name))
            weight.copy_(made)
            if layer.bias is not None:
                layer.bias.zero_()
        return {name: _scale(name, layers[name], run, tolerance, most) for name in order}


def layers_of(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Every linear map and convolution in ``module``, by name."""
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D)
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, kinds))


def _layout(layer: nn.Module) -> Layout:
    import torch

    if isinstance(layer, torch.nn.Linear):
        return LINEAR
    groups: Any = getattr(layer, "groups", None)
    return CONV1D if groups is None else conv(groups)


@contextmanager
def _evaluation(module: torch.nn.Module) -> Iterator[None]:
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inner, mode in modes:
            inner.training = mode


def _order_of_calls(layers: Mapping[str, Any], run: Callable[[], object]) -> list[str]:
    called: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.setdefault(name)

    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    missed = [name for name in layers if name not in called]
    if missed:
        raise ValueError(f"the forward does not reach {missed[0]}; give a batch that does, or initialise it by itself")
    return list(called)


def _scale(name: str, layer: nn.Linear, run: Callable[[], object], tolerance: float, most: int) -> Scaled:
    first = None
    for forwards in range(1, most + 1):
        variance = _output_variance(layer, run)
        if not 0 < variance < float("inf"):
            raise ValueError(
                f"the outputs of {name} have variance {variance:g} on this batch, which no scale makes one"
            )
        first = variance if first is None else first
        if abs(variance - 1) < tolerance:
            return Scaled(first, variance, forwards)
        layer.weight.div_(variance**0.5)
    raise ValueError(f"the outputs of {name} still have variance {variance:g} after {most} forwards")


def _output_variance(layer: nn.Module, run: Callable[[], object]) -> float:
    import torch

    kept: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, output: kept.append(output.double().flatten()))
    try:
        run()
    finally:
        hook.remove()
    return float(torch.cat(kept).var())
