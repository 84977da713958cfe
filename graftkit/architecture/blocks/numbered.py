"""Fields of a config that speak of blocks by number: lists of numbers, mappings from them, and integers that place kinds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graftkit.architecture.blocks.kinds import block_count, kind_of, unlike
from graftkit.architecture.blocks.per_layer import is_by_number, plain_section, section_of, small_integers
from graftkit.architecture.layers import LayerList
from graftkit.architecture.skeleton import Path, Skeleton, build_config, build_skeleton, with_values
from graftkit.errors import InputRejected


def number_lists(config: Mapping[str, Any], section: Path) -> dict[str, list[int]]:
    """The lists of one section of a config, written or derived, that may hold numbers of blocks: each number once."""
    built = section_of(build_config(config), section)
    return {
        name: list(value)
        for name, value in vars(built).items()
        if isinstance(value, list | tuple) and not name.startswith("_") and "token" not in name
        and all(type(item) is int and item >= 0 for item in value) and len(set(value)) == len(value)
    }  # fmt: skip


def renumbered(config: Mapping[str, Any], section: Path, order: Sequence[int]) -> dict[str, Any]:
    """What fields that may speak of blocks by number would hold for the blocks ``order``, by name, where that is another value."""
    found: dict[str, Any] = {}
    for name, held in number_lists(config, section).items():
        if (moved := [place for place, source in enumerate(order) if source in held]) != held:
            found[name] = moved
    for name, said in plain_section(config, section).items():
        if is_by_number(said):
            renamed = {str(place): said[str(source)] for place, source in enumerate(order) if str(source) in said}
            if renamed != said:
                found[name] = renamed
    return found


def subsets(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Some of these fields, fewer first; all of them last."""
    for size in range(1, len(found) + 1):
        yield from (dict(chosen) for chosen in itertools.combinations(found.items(), size))


def names_blocks(config: Mapping[str, Any], section: Path, name: str, old: Skeleton, layers: LayerList) -> bool:
    """Whether the list ``name`` holds numbers of blocks for sure: with one number less, or more, that block alone is another."""
    held, before = number_lists(config, section)[name], kinds_of(old, layers)
    beside = [number for number in range(layers.count) if number not in held]
    for number in (*held[:2], *beside[:2]):
        other = [one for one in held if one != number] if number in held else sorted([*held, number])
        new = skeleton_or_none(with_values(config, [(*section, name)], other))
        if new is None or block_count(new, layers) != layers.count:
            continue
        changed = differing(before, kinds_of(new, layers), range(layers.count))
        if changed:
            return changed == [number]
    return False


def placing_integers(
    config: Mapping[str, Any], depth: Path, old: Skeleton, layers: LayerList
) -> Iterator[tuple[str, int]]:
    """Values of the config that, moved by one, make another kind of some block and leave what is around the blocks as it is."""
    outside, before = _around(old, layers), kinds_of(old, layers)
    for name, value in small_integers(config, depth[:-1], layers.count + 1):
        if name == depth[-1]:
            continue
        for tried in (value + 1, value - 1):
            new = skeleton_or_none(with_values(config, [(*depth[:-1], name)], tried)) if tried >= 0 else None
            if new is None or block_count(new, layers) != layers.count:
                continue
            if _around(new, layers) == outside and _moves_kinds(before, kinds_of(new, layers)):
                yield name, value
                break


def stated_by_list(
    changed: Mapping[str, Any], section: Path, old: Skeleton, layers: LayerList, order: Sequence[int], integers: Sequence[str]
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield configs in which a list of numbers says which of the blocks ``order`` are of another kind than all others.

    ``integers`` place kinds beside the list, by a period: for each of them it is also tried that every block is meant.
    """
    before = kinds_of(old, layers)
    for name in number_lists(changed, section):
        for every in [(), *((one,) for one in integers)]:
            plain = with_values(changed, [(*section, one) for one in every], 1)
            new = skeleton_or_none(with_values(plain, [(*section, name)], []))
            if new is None or block_count(new, layers) != len(order):
                continue
            if others := differing(before, kinds_of(new, layers), order):
                yield with_values(plain, [(*section, name)], others)


def kinds_of(skeleton: Skeleton, layers: LayerList) -> list[Mapping[str, Any]]:
    """The kind of each block of a skeleton."""
    return [kind_of(skeleton, layers, index) for index in range(block_count(skeleton, layers) or 0)]


def differing(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], order: Sequence[int]
) -> list[int]:
    """The places whose kind is not that of the block of ``order`` that stands there."""
    return [
        place for place, source in enumerate(order) if is_other(before[source], source, after[place], place)
    ]  # fmt: skip


def is_other(kind: Mapping[str, Any], index: int, other: Mapping[str, Any], other_index: int) -> bool:
    """Whether two blocks are of two kinds."""
    return any(True for _ in unlike(kind, index, other, other_index))


def skeleton_or_none(config: Mapping[str, Any]) -> Skeleton | None:
    """The skeleton of a config; None where its class cannot be built."""
    try:
        return build_skeleton(config)
    except InputRejected:
        return None


def _around(skeleton: Skeleton, layers: LayerList) -> dict[str, Any]:
    """The shapes of what lies outside of the blocks."""
    return {name: shape for name, shape in skeleton.shapes.items() if not name.startswith(f"{layers.path}.")}


def _moves_kinds(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some block became what another one was, or has other parts and none of another size: a size makes what none was."""
    changed = differing(before, after, range(len(before)))
    known = [
        any(not is_other(kind, other, after[index], index) for other, kind in enumerate(before)) for index in changed
    ]
    return bool(changed) and (all(known) or not any(_resized(before[index], after[index]) for index in changed))


def _resized(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a part that a block has on both sides, other than a module as a whole, is of another size or set otherwise."""
    common = [key for key in before if key in after and not key.startswith("module ")]
    return any(before[key] != after[key] for key in common)
