"""What the class says of one parameter: how a linear map is laid out, and what a fresh model holds in everything else."""

from __future__ import annotations

import contextlib
import copy
import threading
from dataclasses import replace
from typing import Any

from graftkit.architecture.skeleton import Skeleton
from graftkit.initializers.fans import CONV1D, EMBEDDING, LINEAR, Layout, conv, experts

#: torch's global generator is shared; a class's own initialisation knows no other.
_SAMPLING = threading.Lock()


def module_of(skeleton: Skeleton, name: str) -> Any:
    """The module that owns the parameter ``name`` (in memory)."""
    return skeleton.model.get_submodule(name.rpartition(".")[0])


def layout_of(skeleton: Skeleton, name: str) -> Layout | None:
    """Which axes of a parameter are outputs and inputs; None for whatever is no linear map, such as gains and biases.

    Told by the module's class; of fused projections, the parts are told by the sizes that the config implies.
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


def own_values(skeleton: Skeleton, name: str, seed: int) -> Any:
    """What a freshly made model holds in this parameter: a float32 tensor on the CPU, or None where its class leaves it open.

    The class's own initialisation runs on a copy of the one module, on the CPU, from ``seed``. Norm gains become what means
    a gain of one there (zero in Gemma), biases and state-space parameters what their paper says.
    """
    import torch

    module, leaf = module_of(skeleton, name), name.rpartition(".")[2]
    with _SAMPLING, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        try:
            fresh = _emptied(module)
            _model_of(skeleton, name)._init_weights(fresh)  # noqa: SLF001 - the only place where a class says it
        except Exception:  # noqa: BLE001 - a class may ask for anything here; then it has said nothing
            return None
    values = {**fresh._buffers, **fresh._parameters}[leaf].data  # noqa: SLF001
    if bool(values.isfinite().all()):
        return values
    return torch.zeros_like(values) if leaf == "bias" else None


def _model_of(skeleton: Skeleton, name: str) -> Any:
    """The innermost model that holds the parameter: its class knows its modules."""
    from transformers import PreTrainedModel

    model, path = skeleton.model, skeleton.model
    for step in name.split(".")[:-1]:
        path = getattr(path, step)
        model = path if isinstance(path, PreTrainedModel) else model
    return model


def _emptied(module: Any) -> Any:
    """A copy of one module whose own floating parameters and buffers are NaN on the CPU; its children are the same."""
    import torch

    def emptied(value: Any) -> Any:
        if value is None or not value.is_floating_point():
            return value
        empty = torch.full(value.shape, float("nan"))
        return torch.nn.Parameter(empty, requires_grad=False) if isinstance(value, torch.nn.Parameter) else empty

    fresh = copy.copy(module)
    fresh._parameters = {key: emptied(value) for key, value in module._parameters.items()}  # noqa: SLF001
    fresh._buffers = {key: emptied(value) for key, value in module._buffers.items()}  # noqa: SLF001
    return fresh


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


def _experts_layout(skeleton: Skeleton, module: Any, leaf: str, shape: tuple[int, ...]) -> Layout | None:
    """By what the class says of itself; older classes are read off the hidden size, unless both axes have it."""
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
