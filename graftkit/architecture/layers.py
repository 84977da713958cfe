"""The main stack of layers, found from the class itself: the list of equal modules that its config counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.architecture.skeleton import Skeleton
from graftkit.errors import InputRejected

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class LayerList:
    """A list of modules: ``path`` is its name in memory, so that layer 3 is the module ``<path>.3``."""

    path: str
    count: int

    def prefix(self, index: int) -> str:
        """What the names in memory of all parameters of one layer begin with."""
        return f"{self.path}.{index}."


def layer_list(skeleton: Skeleton) -> LayerList:
    """Find the layers that make the last hidden states: the decoder's where there are two stacks.

    It is the one outermost module list of the decoder whose length the config counts as layers.

    Raises:
        InputRejected: no list has that length (layers that share their weights are no list), or several have.
    """
    model = skeleton.model
    counts = _layer_counts(model.config)
    outer = _outermost_lists(model)
    counted = {name: module for name, module in outer.items() if len(module) in counts}
    inside = {id(module) for module in _decoder(model).modules()}
    found = {name: module for name, module in counted.items() if id(module) in inside} or counted
    if len(found) == 1:
        return next(LayerList(name, len(module)) for name, module in found.items())
    what = f"{len(found)} lists of layers: {', '.join(found)}" if found else "no list of layers"
    raise InputRejected(f"{skeleton.architecture}: has {what}")


def layer_stacks(skeleton: Skeleton) -> dict[str, int]:
    """Name in memory of each outermost list of modules that have modules of their own -> its length."""
    lists = _outermost_lists(skeleton.model)
    return {name: len(found) for name, found in lists.items() if any(list(item.children()) for item in found)}


def _outermost_lists(model: PreTrainedModel) -> dict[str, Any]:
    lists = {name: module for name, module in model.named_modules() if _is_list(module)}
    return {name: found for name, found in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}


def _decoder(model: PreTrainedModel) -> Any:
    try:
        decoder = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return model
    return decoder if hasattr(decoder, "modules") else model


def _layer_counts(config: Any) -> set[int]:
    """Every number of layers that the config (of the text decoder, where there are several) names."""
    try:
        config = config.get_text_config(decoder=True)
    except ValueError:
        config = config.get_text_config()
    names = ("num_hidden_layers", "num_decoder_layers", "decoder_layers", "num_layers", "n_layers")
    return {value for name in names if isinstance(value := getattr(config, name, None), int)}


def _is_list(module: nn.Module) -> bool:
    import torch

    return isinstance(module, torch.nn.ModuleList) and any(True for _ in module.parameters())
