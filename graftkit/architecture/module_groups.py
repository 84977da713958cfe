"""The modules and parameters that an adapter can target, grouped: the same one in each layer is one group."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graftkit.architecture.module_names import ends_with
from graftkit.architecture.parameters import layout_of
from graftkit.architecture.skeleton import Skeleton
from graftkit.errors import plural

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["linear", "convolution", "embedding", "parameter"]


@dataclass(frozen=True, slots=True)
class ModuleGroup:
    """Modules of one name and shape, or parameters such as stacked experts, which ``target_parameters`` names.

    ``name`` is the shortest end of their names that none of another group has, where there is one. ``shape`` is (inputs,
    outputs) of a module, (rows, width) of an embedding and the whole shape of a parameter. ``layers`` says that each of the
    ``count`` lies in a layer of its own.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    count: int
    layers: bool

    @property
    def label(self) -> str:
        """``q_proj (24 layers)``."""
        return self.name if self.count == 1 and not self.layers else f"{self.name} ({self.number})"

    @property
    def number(self) -> str:
        """``24 layers``, or how many of them there are where that is not one a layer."""
        return plural(self.count, "layer" if self.layers else "place")

    @property
    def size(self) -> str:
        """``2048 -> 512``, or ``8 x 64 x 128`` of a parameter."""
        return (" x " if self.kind == "parameter" else " -> ").join(map(str, self.shape))


def module_groups(skeleton: Skeleton) -> tuple[ModuleGroup, ...]:
    """Everything that peft's LoRA can adapt, in the order of the model."""
    found = list(_targets(skeleton))
    parameters = {pattern_of(name) for name, _ in skeleton.model.named_parameters()}
    names = short_names({pattern_of(name) for name, _, _ in found}, parameters)
    counts: dict[tuple[str, Kind, tuple[int, ...]], list[str]] = {}
    for name, kind, shape in found:
        counts.setdefault((names[pattern_of(name)], kind, shape), []).append(pattern_of(name))
    return tuple(
        ModuleGroup(name, kind, shape, len(patterns), in_layers(patterns))
        for (name, kind, shape), patterns in counts.items()
    )


def kind_of(module: nn.Module) -> Kind | None:
    """What peft's LoRA takes a module for; None for one that it cannot adapt, such as a norm."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear | Conv1D):
        return "linear"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    return "convolution" if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d) else None


def pattern_of(name: str) -> str:
    """A name with ``*`` in place of each number: it is the same for the same module of another layer."""
    return ".".join("*" if step.isdigit() else step for step in name.split("."))


def in_layers(patterns: Collection[str]) -> bool:
    """Whether modules of these patterns are one in each layer of one list."""
    return len(set(patterns)) == 1 and next(iter(patterns)).count("*") == 1


def short_names(patterns: Collection[str], others: Collection[str] = ()) -> dict[str, str]:
    """Pattern -> its shortest end behind its last number that no other one has; all behind that number where there is none."""
    return {pattern: _short_name(pattern, {*patterns, *others}) for pattern in patterns}


def _short_name(pattern: str, patterns: Collection[str]) -> str:
    steps = pattern.split(".")
    first = max((place + 1 for place, step in enumerate(steps) if step == "*"), default=0)
    ends = [".".join(steps[place:]) for place in range(len(steps) - 1, first - 1, -1)]
    alone = (end for end in ends if not any(ends_with(other, end) for other in patterns if other != pattern))
    return next(alone, ends[-1] if ends else pattern)


def _targets(skeleton: Skeleton) -> Iterator[tuple[str, Kind, tuple[int, ...]]]:
    """Yield name, kind and shape of each module, and of each parameter that is a linear map without a module of its own."""
    for name, module in skeleton.model.named_modules():
        kind = kind_of(module)
        if kind is not None and name:
            yield name, kind, module_shape(module, kind)
        elif kind is None:
            for leaf, value in module.named_parameters(recurse=False):
                full = f"{name}.{leaf}" if name else leaf
                if value.ndim > 1 and layout_of(skeleton, full) is not None:
                    yield full, "parameter", tuple(value.shape)


def module_shape(module: nn.Module, kind: Kind) -> tuple[int, ...]:
    """(inputs, outputs) of a linear or a convolution, (rows, width) of an embedding."""
    from transformers.pytorch_utils import Conv1D

    first, second = (int(size) for size in module.get_parameter("weight").shape[:2])
    if kind == "embedding" or isinstance(module, Conv1D):
        return first, second
    return second * int(getattr(module, "groups", 1)), first
