"""What an adapter trains, by module of its base: which, in how many layers, and how many parameters."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from graftkit.architecture.module_groups import in_layers, kind_of, module_shape, pattern_of, short_names
from graftkit.architecture.peft.parts import PREFIX
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.adapter import Adapter
from graftkit.errors import plural


@dataclass(frozen=True, slots=True)
class AdaptedGroup:
    """The same module in ``count`` places, each in a layer of its own where ``layers`` says so.

    ``shape`` is (inputs, outputs) of a linear, (rows, width) of an embedding, empty for whatever else an adapter hangs on;
    ``parameters`` counts what trains in all of them together.
    """

    name: str
    count: int
    layers: bool
    shape: tuple[int, ...]
    parameters: int

    @property
    def number(self) -> str:
        """``24 layers``, or how many of them there are where that is not one a layer."""
        return plural(self.count, "layer" if self.layers else "place")


def adapted_groups(adapter: Adapter, skeleton: Skeleton) -> tuple[AdaptedGroup, ...]:
    """The modules that the tensors of ``adapter`` belong to, in the order of the file; frozen tensors train nothing."""
    modules = {name for name, _ in skeleton.model.named_modules()}
    trained = _trained(adapter, modules)
    everywhere = {pattern_of(name) for name, module in skeleton.model.named_modules() if name and kind_of(module)}
    names = short_names(everywhere | {pattern_of(name) for name in trained})
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for owner in trained:
        shape = _shape(skeleton, owner) if owner in modules else ()
        groups.setdefault((names[pattern_of(owner)], shape), []).append(owner)
    return tuple(
        AdaptedGroup(
            name, len(found), in_layers([pattern_of(one) for one in found]), shape, sum(trained[one] for one in found)
        )
        for (name, shape), found in groups.items()
    )


def untouched(adapter: Adapter, skeleton: Skeleton) -> tuple[str, ...]:
    """Short names of the modules with parameters of their own to which no tensor of ``adapter`` belongs, in the order of the model."""
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name, _ in skeleton.model.named_parameters()))
    trained = {pattern_of(name) for name in _trained(adapter, set(owners))}
    patterns = dict.fromkeys(pattern_of(name) for name in owners)
    names = short_names(patterns)
    return tuple(dict.fromkeys(names[pattern] for pattern in patterns if pattern not in trained))


def _trained(adapter: Adapter, modules: Collection[str]) -> dict[str, int]:
    """Each of the ``modules`` that a tensor of the adapter belongs to -> the number of parameters that train in it."""
    trained: dict[str, int] = {}
    for name, tensor in adapter.tensors.items():
        owner = _module(name.removeprefix(PREFIX), modules)
        trained[owner] = trained.get(owner, 0) + (0 if name in adapter.frozen else math.prod(tensor.shape))
    return trained


def _module(name: str, modules: Collection[str]) -> str:
    """The longest beginning of the name of an adapter's tensor that is a module of the base; all of it where none is."""
    steps = name.split(".")
    beginnings = (".".join(steps[:count]) for count in range(len(steps) - 1, 0, -1))
    return next((beginning for beginning in beginnings if beginning in modules), name)


def _shape(skeleton: Skeleton, name: str) -> tuple[int, ...]:
    module = skeleton.model.get_submodule(name)
    kind = kind_of(module)
    return module_shape(module, kind) if kind else ()
