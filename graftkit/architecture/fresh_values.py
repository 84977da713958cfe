"""What a freshly made model holds in a parameter, by its class's own initialisation."""

from __future__ import annotations

import contextlib
import copy
import threading
from typing import TYPE_CHECKING, Any

from graftkit.architecture.skeleton import Skeleton

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

#: torch's global generator is shared, and a class's own initialisation knows no other.
_SAMPLING = threading.Lock()


def own_values(skeleton: Skeleton, name: str, seed: int) -> Tensor | None:
    """What a freshly made model holds in the parameter ``name`` (in memory), sampled from ``seed``.

    The class's own initialisation runs for the module that owns the parameter and then for the modules around it, which may
    overrule it: the order of ``PreTrainedModel.init_weights``. They are copies, and only this parameter's module is on the
    CPU. So norm gains become what means a gain of one (zero in Gemma), biases and state-space parameters what their paper
    says. *Shape:* the parameter's; float32; None where the class leaves it open.
    """
    import torch

    *steps, leaf = name.split(".")
    path = [skeleton.model]
    for step in steps:
        path.append(getattr(path[-1], step))
    with _SAMPLING, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        try:
            owner = fresh = _copy_without_values(path[-1])
            for depth in reversed(range(len(path))):
                with contextlib.suppress(Exception):  # a class may ask for anything here; then it has said nothing
                    _innermost_model(path[: depth + 1])._init_weights(fresh)  # noqa: SLF001 - the only place where it is said
                fresh = _with_child(path[depth - 1], steps[depth - 1], fresh) if depth else fresh
        except RuntimeError:  # torch refuses copies of parametrised modules
            return None
    found: dict[str, Tensor | None] = {**owner._buffers, **owner._parameters}  # noqa: SLF001
    stored = found[leaf]
    if stored is None:
        return None
    values = stored.data
    if bool(values.isfinite().all()):
        return values
    return torch.zeros_like(values) if leaf == "bias" else None


def _with_child(outer: nn.Module, name: str, inner: nn.Module) -> nn.Module:
    """A copy of ``outer`` in which the child ``name`` is ``inner``."""
    fresh = copy.copy(outer)
    fresh._modules = {**outer._modules, name: inner}  # noqa: SLF001 - as in _copy_without_values
    return fresh


def _innermost_model(path: list[nn.Module]) -> PreTrainedModel:
    """The innermost model of a path of modules: its class knows them."""
    from transformers import PreTrainedModel

    return next(module for module in reversed(path) if isinstance(module, PreTrainedModel))


def _copy_without_values(module: nn.Module) -> nn.Module:
    """A copy of one module whose own floating parameters and buffers are NaN on the CPU; its children are the same."""
    import torch

    def without_values(value: Any) -> Any:
        if value is None or not value.is_floating_point():
            return value
        empty = torch.full(value.shape, float("nan"))
        return torch.nn.Parameter(empty, requires_grad=False) if isinstance(value, torch.nn.Parameter) else empty

    fresh = copy.copy(module)
    # nn.Module has no other way to copy one module without its children
    fresh._parameters = {key: without_values(value) for key, value in module._parameters.items()}  # noqa: SLF001
    fresh._buffers = {key: without_values(value) for key, value in module._buffers.items()}  # noqa: SLF001
    return fresh
