"""Steps that move values and compute none: split, concat, permute and reshape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.rearranged import joined, narrowed, permuted, reshaped
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import RecipeError, printable
from graftkit.operations.tensor_edits.selection import fitting, require_free, select, shard_of
from graftkit.operations.tensor_edits.stepped import Place, Stepped
from graftkit.recipe.tensor_steps import Concat, Permute, Reshape, Split

_NUMBERS = re.compile(r"(\d+)")


def split(step: Split, checkpoint: Checkpoint, _: Place) -> Stepped:
    """Cut tensors along an axis; the parts lie in the file of the whole.

    Raises:
        RecipeError: an expression fits no tensor, the sizes do not fill the axis, or a name is taken.
    """
    result, origins = checkpoint, dict[str, str]()
    for name, match in select(step.tensors, checkpoint.tensors).items():
        tensor = checkpoint.tensors[name]
        axis = _axis(step.axis, name, tensor)
        sizes = _sizes(step, name, tensor.shape[axis])
        parts: dict[str, LazyTensor | None] = {name: None}
        start = 0
        for template, size in zip(step.into, sizes, strict=True):
            part = match.expand(template)
            if part in origins:
                raise RecipeError(f"{printable(part)!r} would be the name of two parts", field="into")
            origins[part] = name
            parts[part] = narrowed(tensor, axis, start, start + size)
            start += size
        require_free({part: name for part in parts if part != name}, result.tensors)
        result = result.with_tensors(parts, shard=shard_of(name, result.shards))
    return Stepped(result)


def _axis(axis: int, name: str, tensor: LazyTensor) -> int:
    if not -len(tensor.shape) <= axis < len(tensor.shape):
        raise RecipeError(f"{printable(name)!r} of shape {list(tensor.shape)} has no such axis", field="axis")
    return axis % len(tensor.shape)


def _sizes(step: Split, name: str, size: int) -> tuple[int, ...]:
    if step.sizes:
        if sum(step.sizes) != size:
            raise RecipeError(f"add up to {sum(step.sizes)}, and {printable(name)!r} has {size}", field="sizes")
        return step.sizes
    if size % len(step.into):
        raise RecipeError(
            f"{printable(name)!r} has {size} there, which is not {len(step.into)} equal parts; give sizes", field="into"
        )
    return (size // len(step.into),) * len(step.into)


def concat(step: Concat, checkpoint: Checkpoint, _: Place) -> Stepped:
    """Join tensors along an axis; what they become lies in the file of its first part.

    Raises:
        RecipeError: an expression fits no tensor, or none for one of the new names; parts do not fit; or a name is taken.
    """
    result = checkpoint
    for into, names in _parts(step, checkpoint).items():
        tensors = [checkpoint.tensors[name] for name in names]
        axis = _axis(step.axis, names[0], tensors[0])
        for name, tensor in zip(names, tensors, strict=True):
            if (tensor.dtype, _without(tensor, axis)) != (tensors[0].dtype, _without(tensors[0], axis)):
                raise RecipeError(
                    f"{printable(name)!r} is {tensor.dtype} {list(tensor.shape)}, which does not join"
                    f" {printable(names[0])!r}, {tensors[0].dtype} {list(tensors[0].shape)}, along axis {axis}",
                    field="tensors",
                )
        require_free({into: names[0]}, result.tensors.keys() - set(names))
        shard = shard_of(names[0], result.shards)
        whole = result.with_tensors({into: joined(tensors, axis)}, shard=shard)
        result = whole.with_tensors(dict.fromkeys(name for name in names if name != into))
    return Stepped(result)


def _without(tensor: LazyTensor, axis: int) -> tuple[int, ...]:
    return (*tensor.shape[:axis], *tensor.shape[axis + 1 :])


def _parts(step: Concat, checkpoint: Checkpoint) -> Mapping[str, list[str]]:
    """The names of the parts of each new tensor, in their order."""
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    reached: list[set[str]] = []
    for place, expression in enumerate(step.tensors):
        fits = sorted(fitting(expression, checkpoint.tensors, f"tensors.{place}").items(), key=_by_numbers)
        for name, match in fits:
            if name in taken:
                raise RecipeError(f"{printable(name)!r} is a part already", field=f"tensors.{place}")
            taken.add(name)
            found.setdefault(match.expand(step.into), []).append(name)
        reached.append({match.expand(step.into) for _, match in fits})
    for place, names in enumerate(reached):
        if lacking := sorted(found.keys() - names):
            raise RecipeError(f"has no part for {printable(lacking[0])!r}", field=f"tensors.{place}")
    if single := [names[0] for names in found.values() if len(names) == 1]:
        raise RecipeError(f"{printable(single[0])!r} would be the only part", field="tensors")
    return found


def _by_numbers(item: tuple[str, object]) -> list[tuple[int, int | str]]:
    """A key that orders names by the numbers in them: layer 10 comes behind layer 9."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in _NUMBERS.split(item[0])]


def permute(step: Permute, checkpoint: Checkpoint, _: Place) -> Stepped:
    """Put axes into another order.

    Raises:
        RecipeError: an expression fits no tensor, or one has another number of axes.
    """
    changes: dict[str, LazyTensor | None] = {}
    for name in select(step.tensors, checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        if len(tensor.shape) != len(step.dims):
            raise RecipeError(f"{printable(name)!r} has shape {list(tensor.shape)}, of other axes", field="dims")
        changes[name] = permuted(tensor, step.dims)
    return Stepped(checkpoint.with_tensors(changes))


def reshape(step: Reshape, checkpoint: Checkpoint, _: Place) -> Stepped:
    """Give tensors another shape, of the same bytes in the same order.

    Raises:
        RecipeError: an expression fits no tensor, or one has another number of values.
    """
    changes: dict[str, LazyTensor | None] = {}
    for name in select(step.tensors, checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        count, known = math.prod(tensor.shape), math.prod(size for size in step.shape if size != -1)
        shape = tuple(count // known if size == -1 and known else size for size in step.shape)
        if -1 in shape or math.prod(shape) != count:
            raise RecipeError(f"{printable(name)!r} has shape {list(tensor.shape)}, of {count:,} values", field="shape")
        changes[name] = reshaped(tensor, shape)
    return Stepped(checkpoint.with_tensors(changes))
