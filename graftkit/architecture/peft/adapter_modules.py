"""The modules that an adapter changes and those that a class has, by name: what the names of both are compared by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from graftkit.architecture.peft.parts import PREFIX

if TYPE_CHECKING:
    from graftkit.architecture.skeleton import Skeleton
    from graftkit.checkpoint.adapter import Adapter

#: A name, component by component.
Parts = tuple[str, ...]

Shape = tuple[int, ...]

#: What peft puts between the name of a module and what it adds to it, beside the parts that begin with ``lora_``.
INSIDE = ("base_layer", "token_adapter", "modules_to_save", "original_module")


def split_key(name: str) -> tuple[Parts, Parts]:
    """The module that a tensor of an adapter belongs to, and what lies behind that module's name."""
    parts = tuple(name.removeprefix(PREFIX).split("."))
    inside = (place for place, part in enumerate(parts) if part in INSIDE or part.startswith("lora_"))
    end = next(inside, len(parts) - 1)
    return parts[:end], parts[end:]


def modules_of(adapter: Adapter) -> dict[Parts, list[tuple[Parts, Shape]]]:
    """Name of each module that the adapter changes -> what lies behind that name, with the shape."""
    found: dict[Parts, list[tuple[Parts, Shape]]] = {}
    for name, tensor in adapter.tensors.items():
        path, behind = split_key(name)
        found.setdefault(path, []).append((behind, tensor.shape))
    return found


def modules_of_class(skeleton: Skeleton) -> Mapping[Parts, Mapping[str, Shape]]:
    """Name of each module of a class that holds tensors of its own -> their shapes by the last part of their names."""
    found: dict[Parts, dict[str, Shape]] = {}
    for name, shape in skeleton.shapes.items():
        *path, leaf = name.split(".")
        found.setdefault(tuple(path), {})[leaf] = shape
    return found
