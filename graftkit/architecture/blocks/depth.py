"""The config of a model with other blocks: their number, every list of one entry per block, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graftkit.architecture.blocks.kinds import block_count, first_difference, kind_of, unlike
from graftkit.architecture.blocks.per_layer import lists_in_step, small_integers
from graftkit.architecture.layers import LayerList
from graftkit.architecture.skeleton import (
    Path,
    Skeleton,
    build_config,
    build_skeleton,
    integer_paths,
    with_values,
)
from graftkit.errors import InputRejected


def rearranged(
    config: Mapping[str, Any], old: Skeleton, layers: LayerList, order: Sequence[int], copies: Collection[int] = ()
) -> tuple[dict[str, Any], Skeleton, tuple[int, ...]]:
    """The config of the blocks ``order``, numbers of the old ones, its skeleton, in which each is of its old kind, and the order.

    At the places ``copies`` the order may become another: where the config wants another kind, the nearest block of that kind.

    Raises:
        InputRejected: no value of the config counts the blocks, or with these blocks one of them would be another: the message
            names the field that places it, where one can be found.
    """
    tied = next((name for name in old.tied if _within(layers, name) or _within(layers, old.tied[name])), None)
    if tied is not None:
        raise InputRejected(f"{old.architecture}: blocks share weights ({tied}), and none can be moved by itself")
    refusals: list[str] = []
    for depth in _depth_paths(config, layers.count):
        try:
            changed = lists_in_step(config, depth, layers.count, order)
            new = build_skeleton(changed)
        except InputRejected as error:
            refusals.append(str(error))
            continue
        if block_count(new, layers) != len(order):
            continue
        difference = first_difference(old, new, layers, order)
        if difference is None:
            return changed, new, tuple(order)
        deeper = replace(layers, count=len(order))
        found = dict((*_placing(config, depth, old, layers), *_placing(changed, depth, new, deeper)))
        placing = list(found.items())
        moved = _recomputed(changed, depth, old, layers, order, placing)
        if moved is not None:
            return *moved, tuple(order)
        nearest = _nearest_of_kind(old, new, layers, order, copies)
        if nearest is not None and first_difference(old, new, layers, nearest) is None:
            return changed, new, nearest
        raise InputRejected(f"{_named([name for name, _ in placing])}{difference}")
    raise InputRejected(
        next(iter(refusals), f"{old.architecture}: no value of config.json counts the blocks of {layers.path}")
    )


def _named(placing: Sequence[str]) -> str:
    """The fields that place kinds of blocks, as a sentence begins."""
    verb = "place" if len(placing) > 1 else "places"
    return f"config.json: {', '.join(placing)} {verb} kinds of blocks by number: " if placing else ""


def _nearest_of_kind(
    old: Skeleton, new: Skeleton, layers: LayerList, order: Sequence[int], copies: Collection[int]
) -> tuple[int, ...] | None:
    """The order in which each copy is of the nearest block whose kind ``new`` wants at its place; None where none has it."""
    found, kinds = list(order), [kind_of(old, layers, index) for index in range(layers.count)]
    for place in copies:
        wanted = kind_of(new, layers, place)
        near = sorted(range(layers.count), key=lambda index: abs(index - order[place]))
        same = (index for index in near if not any(True for _ in unlike(kinds[index], index, wanted, place)))
        source = next(same, None)
        if source is None:
            return None
        found[place] = source
    return tuple(found) if copies else None


def _within(layers: LayerList, name: str) -> bool:
    return name.startswith(f"{layers.path}.")


def _depth_paths(config: Mapping[str, Any], count: int) -> list[Path]:
    """Where the config may count its blocks: what is written, then defaults, names with ``layer`` in them first."""
    written, built = integer_paths(dict(config)), integer_paths(build_config(config).to_dict())
    found = dict.fromkeys(path for path, value in (*written, *built) if value == count)
    return sorted(found, key=lambda path: "layer" not in path[-1])


def _recomputed(
    changed: Mapping[str, Any], depth: Path, old: Skeleton, layers: LayerList, order: Sequence[int],
    placing: Sequence[tuple[str, int]],
) -> tuple[dict[str, Any], Skeleton] | None:  # fmt: skip
    """The config with one placing value moved so that every block is of its old kind; None where there is none."""
    most = abs(len(order) - layers.count)
    for name, value in placing:
        for tried in (value + step for size in range(1, most + 1) for step in (-size, size) if value + step >= 0):
            moved = with_values(changed, [(*depth[:-1], name)], tried)
            new = _skeleton_or_none(moved)
            if new is not None and first_difference(old, new, layers, order) is None:
                return moved, new
    return None


def _placing(config: Mapping[str, Any], depth: Path, old: Skeleton, layers: LayerList) -> Iterator[tuple[str, int]]:
    """Values of the config that, moved by one, make another kind of some block and leave what is around the blocks as it is."""
    stack = f"{layers.path}."
    outside = {name: shape for name, shape in old.shapes.items() if not name.startswith(stack)}
    for name, value in small_integers(config, depth[:-1], layers.count + 1):
        if name == depth[-1]:
            continue
        for tried in (value + 1, value - 1):
            new = _skeleton_or_none(with_values(config, [(*depth[:-1], name)], tried)) if tried >= 0 else None
            if new is None or block_count(new, layers) != layers.count:
                continue
            around = {key: shape for key, shape in new.shapes.items() if not key.startswith(stack)}
            if around == outside and _moves_kinds(old, new, layers):
                yield name, value
                break


def _moves_kinds(old: Skeleton, new: Skeleton, layers: LayerList) -> bool:
    """Whether some block became what another one was, or has other parts and none of another size: a size makes what none was."""
    before = [kind_of(old, layers, index) for index in range(layers.count)]
    after = [kind_of(new, layers, index) for index in range(layers.count)]
    changed = [index for index in range(layers.count) if _unlike(before, index, after, index)]
    known = [any(not _unlike(before, other, after, index) for other in range(layers.count)) for index in changed]
    return bool(changed) and (all(known) or not any(_resized(before[index], after[index]) for index in changed))


def _resized(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a part that a block has on both sides, other than a module as a whole, is of another size or set otherwise."""
    common = [key for key in before if key in after and not key.startswith("module ")]
    return any(before[key] != after[key] for key in common)


def _unlike(before: Sequence[Any], index: int, after: Sequence[Any], other: int) -> bool:
    return any(True for _ in unlike(before[index], index, after[other], other))


def _skeleton_or_none(config: Mapping[str, Any]) -> Skeleton | None:
    try:
        return build_skeleton(config)
    except InputRejected:
        return None
