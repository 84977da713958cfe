"""Whether the blocks of two skeletons are of one kind: equal modules, shapes and settings, and equal operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftkit.architecture.blocks.trace import trace_blocks, why_it_does_not_begin, why_it_does_not_run
from graftkit.architecture.layers import LayerList
from graftkit.architecture.skeleton import Skeleton
from graftkit.errors import printable

if TYPE_CHECKING:
    from torch import nn


def block_count(skeleton: Skeleton, layers: LayerList) -> int | None:
    """How many blocks the list of this path holds; None where there is no such list."""
    try:
        return len(skeleton.model.get_submodule(layers.path))
    except (AttributeError, TypeError):
        return None


def first_difference(old: Skeleton, new: Skeleton, layers: LayerList, order: Sequence[int]) -> str | None:
    """Say where ``new`` is not ``old`` with the blocks ``order``; None where it is.

    ``layers`` are the old ones; ``order`` gives the old number of each block of the new one.
    """
    return next(_differences(old, new, layers, order), None)


def _differences(old: Skeleton, new: Skeleton, layers: LayerList, order: Sequence[int]) -> Iterator[str]:
    stack = f"{layers.path}."
    outside = [
        {name: shape for name, shape in skeleton.shapes.items() if not name.startswith(stack)}
        for skeleton in (old, new)
    ]
    for name in sorted(outside[0].keys() | outside[1].keys()):
        shapes = [found.get(name) for found in outside]
        if shapes[0] != shapes[1]:
            yield f"{printable(name)!r} would be {_shown(shapes[1])}, and is {_shown(shapes[0])}"
    kinds = {source: kind_of(old, layers, source) for source in set(order)}
    for place, source in enumerate(order):
        found = kind_of(new, layers, place)
        for key in unlike(kinds[source], source, found, place):
            was, is_ = kinds[source].get(key), found.get(key)
            yield f"block {source} as block {place}: {key} would be {_shown(is_)}, and is {_shown(was)}"
    traces = trace_blocks(old, layers), trace_blocks(new, layers)
    for place, source in enumerate(order) if all(traces) else ():
        if traces[0][source] != traces[1][place]:
            yield f"block {source} as block {place} would compute otherwise: {_operation(traces[0][source], traces[1][place])}"
    for ask, what in ((why_it_does_not_begin, "load"), (why_it_does_not_run, "run")):
        said, before = ask(new), ask(old)
        if said and said.partition(":")[0] != before.partition(":")[0]:  # without values some do as little as before
            yield f"{new.architecture} does not {what} with these blocks: {said}"


def kind_of(skeleton: Skeleton, layers: LayerList, index: int) -> Mapping[str, Any]:
    """What tells one block from another, less its weights: modules, shapes, and settings that are plain values."""
    prefix = layers.prefix(index)
    found: dict[str, Any] = {
        name.removeprefix(prefix): shape for name, shape in skeleton.shapes.items() if name.startswith(prefix)
    }
    for name, module in skeleton.model.get_submodule(prefix[:-1]).named_modules():
        found[f"module {name}".rstrip()] = type(module).__name__
        found |= {f"{name}.{key}".lstrip("."): value for key, value in _settings(module).items()}
    return found


def unlike(kind: Mapping[str, Any], index: int, other: Mapping[str, Any], other_index: int) -> Iterator[str]:
    """Yield the keys in which two kinds differ, less those that hold nothing but the number of the block."""
    for key in dict.fromkeys([*kind, *other]):
        values = kind.get(key), other.get(key)
        numbers = values == (index, other_index) and bool not in map(type, values)
        if values[0] != values[1] and not numbers:
            yield key


def _settings(module: nn.Module) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training" and isinstance(value, int | float | str | tuple | type(None))
    }


def _operation(old: Sequence[str], new: Sequence[str]) -> str:
    """The first operation in which two runs differ."""
    pairs = zip([*old, "its end"], [*new, "its end"], strict=False)
    was, is_ = next((a, b) for a, b in pairs if a != b)
    return f"{is_} in place of {was}"


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    return str(list(value)) if isinstance(value, tuple) else printable(repr(value))
