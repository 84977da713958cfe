"""The modules of a class under the names that an adapter has for them, so that peft itself reads the adapter's config.

Regular expressions, patterns and layers of the config are meant for those names, and the class that has them need not be known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from graftkit.architecture.peft.adapter_modules import modules_of
from graftkit.architecture.skeleton import Skeleton

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from graftkit.architecture.peft.places import Places
    from graftkit.checkpoint.adapter import Adapter


def under_old_names(skeleton: Skeleton, adapter: Adapter, places: Places) -> Skeleton:
    """A skeleton that holds the modules of ``adapter`` alone, by its names, and shares them with ``skeleton``.

    A module that the loader joins with others is a linear of the adapter's shapes.
    """
    import torch

    class Root(torch.nn.Module):
        base_model_prefix = ""

        def get_input_embeddings(self) -> Any:
            return skeleton.model.get_input_embeddings()

    Root.__name__ = skeleton.architecture  # as peft's refusals call it
    root = Root()
    shapes = {".".join(path): held for path, held in modules_of(adapter).items()}
    for old in sorted(places.modules):
        if old in places.converted:
            module: nn.Module = _linear(shapes[old])
        else:
            module = skeleton.model.get_submodule(places.modules[old])
        _put(root, old, module)
    held = {name: tuple(value.shape) for name, value in root.state_dict().items()}
    return Skeleton(skeleton.architecture, cast("PreTrainedModel", root), held, {})


def _linear(held: list[tuple[tuple[str, ...], tuple[int, ...]]]) -> nn.Module:
    """A linear without values whose sizes are those of the factors."""
    import torch

    inputs = next((shape[1] for behind, shape in held if behind[0] == "lora_A" and len(shape) == 2), 1)
    outputs = next((shape[0] for behind, shape in held if behind[0] == "lora_B" and len(shape) == 2), 1)
    return torch.nn.Linear(inputs, outputs, bias=False, device="meta")


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    import torch

    *path, leaf = name.split(".")
    for part in path:
        inner = dict(root.named_children()).get(part)
        if inner is None:
            inner = torch.nn.Module()
            root.register_module(part, inner)
        root = inner
    if leaf not in dict(root.named_children()):
        root.register_module(leaf, module)
