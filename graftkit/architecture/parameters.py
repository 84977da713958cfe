"""What the class says of one parameter: whether it is a linear map, and how that is laid out."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graftkit.architecture.skeleton import Skeleton
from graftkit.initializers.fans import CONV1D, EMBEDDING, LINEAR, Layout, conv, experts

if TYPE_CHECKING:
    from torch import nn


def module_of(skeleton: Skeleton, name: str) -> nn.Module:
    """The module that owns the parameter ``name`` (in memory)."""
    module: nn.Module = skeleton.model.get_submodule(name.rpartition(".")[0])
    return module


def layout_of(skeleton: Skeleton, name: str) -> Layout | None:
    """Which axes of a parameter are outputs and inputs; None for whatever is no linear map, such as gains and biases.

    The module's class decides; the parts of fused projections follow from sizes in the config.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    module, leaf = module_of(skeleton, name), name.rpartition(".")[2]
    shape = tuple(getattr(module, leaf).shape)
    if len(shape) == 3 and "Experts" in type(module).__name__:
        return _experts_layout(skeleton, module, leaf, shape)
    if isinstance(module, torch.nn.MultiheadAttention) and leaf == "in_proj_weight":
        return Layout(parts=(shape[0] // 3,) * 3)
    layout = None
    match module:
        case _ if leaf != "weight" or len(shape) < 2:
            pass
        case torch.nn.Embedding():
            layout = EMBEDDING
        case Conv1D():
            layout = replace(CONV1D, parts=_attention_parts(skeleton, name, shape[1]))
        case torch.nn.Conv1d() | torch.nn.Conv2d() | torch.nn.Conv3d():
            layout = conv(module.groups)
        case torch.nn.Linear():
            layout = replace(LINEAR, parts=_attention_parts(skeleton, name, shape[0]) or _gate_parts(name, shape[0]))
        case _ if len(shape) == 2 and not list(module.children()):
            layout = LINEAR  # routers, which multiply as a Linear does
    return layout


def is_parameter(skeleton: Skeleton, name: str) -> bool:
    """Whether the state dict's entry ``name`` is a parameter and no buffer."""
    return name.rpartition(".")[2] in module_of(skeleton, name)._parameters  # noqa: SLF001 - the one place that tells


def text_value(skeleton: Skeleton, *names: str) -> Any:
    """The first of ``names`` that the config of the text decoder (or the config itself) holds, else None."""
    config = skeleton.model.config
    try:
        inner = config.get_text_config(decoder=True)
    except ValueError:
        inner = config
    for place, attribute in ((place, name) for name in names for place in (inner, config)):
        with contextlib.suppress(Exception):  # a config whose layers differ refuses in its own way
            if (value := getattr(place, attribute, None)) is not None:
                return value
    return None


def _experts_layout(skeleton: Skeleton, module: nn.Module, leaf: str, shape: tuple[int, ...]) -> Layout | None:
    """The layout that the class declares, else the one that the hidden size implies; None where both axes have that size."""
    widens = "down" not in leaf and leaf not in ("w2", "output_linear")
    transposed = getattr(module, "is_transposed", None)
    if transposed is None:
        hidden = text_value(skeleton, "hidden_size")
        if "Parallel" in type(module).__name__ or leaf == "weight":
            transposed = False
        elif (shape[1] == hidden) == (shape[2] == hidden):
            return None
        else:
            transposed = (shape[1] == hidden) == widens
    if "gate_up" not in leaf:
        return experts(transposed=transposed)
    size = shape[2 if transposed else 1]
    interleaved = not getattr(module, "is_concatenated", True)
    return experts(
        transposed=transposed,
        parts=(1, 1) if interleaved else (size // 2,) * 2,
        repeats=size // 2 if interleaved else 1,
    )


def _attention_parts(skeleton: Skeleton, name: str, outputs: int) -> tuple[int, ...]:
    """Sizes of query, key and value where one projection of an attention module makes all three."""
    owner = skeleton.model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
    if "Attention" not in type(owner).__name__ or any(key.startswith("k") for key, _ in owner.named_children()):
        return ()
    heads = text_value(skeleton, "num_attention_heads")
    hidden = text_value(skeleton, "hidden_size")
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return ()
    size = text_value(skeleton, "head_dim") or hidden // heads
    groups = text_value(skeleton, "num_key_value_heads") or heads
    parts = (heads * size, groups * size, groups * size)
    return parts if sum(parts) == outputs != hidden else ()


def _gate_parts(name: str, outputs: int) -> tuple[int, ...]:
    return (outputs // 2,) * 2 if "gate_up" in name and outputs % 2 == 0 else ()
