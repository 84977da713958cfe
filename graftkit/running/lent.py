"""A model of one class that holds the parameters of another: a text model those of its wrapper, a backbone those under a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from graftkit.architecture.part import lay_on
from graftkit.errors import InputRejected

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from graftkit.architecture.skeleton import Skeleton


def lend(
    donor: PreTrainedModel, skeleton: Skeleton, origin: Callable[[str], str | None] | None = None
) -> PreTrainedModel:
    """The model of ``skeleton`` with the tensors of ``donor``, which both then share; in eval mode.

    A tensor without a counterpart is zero, such as the head that a base model lacks. ``origin`` gives the donor's name of a tensor,
    where it is known.

    Raises:
        InputRejected: nothing of the one is in the other, or it is not clear which part is.
    """
    model: Any = skeleton.model
    tensors = _tensors(donor)
    names = _counterparts(model, donor) if origin is None else {name: origin(name) for name in _tensors(model)}
    for path, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):  # noqa: SLF001 - torch offers no way to replace a tied parameter
            for leaf in held:
                name = names.get(f"{path}.{leaf}" if path else leaf)
                if name is not None:
                    held[leaf] = tensors[name]
                elif held[leaf] is not None and held[leaf].is_meta:
                    held[leaf] = _zeros(held[leaf], donor.dtype)
    lent: PreTrainedModel = model.eval()
    return lent


def _zeros(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros of the same shape, of ``dtype`` where the tensor is floating; a parameter where it is one."""
    import torch

    zeros = torch.zeros(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
    return torch.nn.Parameter(zeros, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else zeros


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _counterparts(model: PreTrainedModel, donor: PreTrainedModel) -> dict[str, str]:
    """Name of each tensor of ``model`` -> that of the donor's tensor of the same shape that stands in its place."""
    if type(model) is type(donor):
        return {name: name for name in _tensors(model)}
    best = lay_on(model, _kinds(model), donor, _kinds(donor))
    if len(best) != 1:
        what = "it is not clear which part of one is" if best else "no tensor of one is in"
        raise InputRejected(f"{what} the other: {type(donor).__name__} and {type(model).__name__}")
    (pairs,) = best
    return dict(pairs)


def _kinds(model: nn.Module) -> dict[str, tuple[torch.Size, bool]]:
    """The shape of every parameter and buffer, and whether it is a parameter."""
    from torch import nn

    return {name: (tensor.shape, isinstance(tensor, nn.Parameter)) for name, tensor in _tensors(model).items()}
