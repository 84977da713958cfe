"""A small config of the same class: what a class does with its axes is tried on one, whatever the size of the checkpoint.

There is no table of sizes. A number of the config is a size where a smaller one makes a smaller model; it is made smaller as long as
the class can be built and run with it, on the meta device, and has parameters of the same kinds. Counts of heads, groups and experts
stay, since they are small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.architecture.blocks.kinds import kind_of, unlike
from graftkit.architecture.blocks.per_layer import lists_in_step
from graftkit.architecture.blocks.trace import why_it_does_not_run
from graftkit.architecture.layers import LayerList, layer_list
from graftkit.architecture.skeleton import Path, Skeleton, build_config, build_skeleton, integer_paths, with_values
from graftkit.architecture.widths.growth import kind
from graftkit.errors import InputRejected

#: A model of no more values than this is small.
ENOUGH = 1 << 20

#: Numbers up to this are left alone, and none is made smaller than the other one.
MOST_COUNT, LEAST_SIZE = 256, 32


def miniature(config: Mapping[str, Any], skeleton: Skeleton, field: Path) -> dict[str, Any]:
    """A config of the same class with few blocks, at least one of each kind, and small sizes; that at ``field`` is as it was."""
    if _values(skeleton) <= ENOUGH:
        return dict(config)
    small, wanted = _without_special_ids(_shallow(config, skeleton, field)), _kinds(skeleton)
    found = build_skeleton(small, skeleton.architecture)
    for path in _sizes(small, field):
        if _values(found) <= ENOUGH:
            break
        small, found = _smaller(small, found, path, wanted)
    return small


def _without_special_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config whose special tokens have the first id, so that a small vocabulary has them too, where the class can be built so."""
    found = dict(integer_paths(build_config(config).to_dict())) | dict(integer_paths(dict(config)))
    ids = [path for path, value in found.items() if "token" in path[-1] and value >= LEAST_SIZE]
    changed = with_values(config, ids, 0)
    return changed if _built(changed) is not None else dict(config)


def _values(skeleton: Skeleton) -> int:
    return sum(math.prod(shape) for shape in skeleton.shapes.values())


def _kinds(skeleton: Skeleton) -> set[tuple[str, int]]:
    return {(kind(name), len(shape)) for name, shape in skeleton.shapes.items()}


def _sizes(config: Mapping[str, Any], field: Path) -> list[Path]:
    """Where the config has numbers that may be sizes, the largest first."""
    found = dict(integer_paths(build_config(config).to_dict())) | dict(integer_paths(dict(config)))
    sizes = [path for path, value in found.items() if value > MOST_COUNT and path != field and "token" not in path[-1]]
    return sorted(sizes, key=lambda path: -found[path])


def _smaller(
    config: Mapping[str, Any], skeleton: Skeleton, path: Path, wanted: set[tuple[str, int]]
) -> tuple[dict[str, Any], Skeleton]:
    """The config with the smallest number at ``path`` with which the class works and is smaller; as it was if there is none."""
    value = _value(config, path)
    half = _built(with_values(config, [path], value // 2))
    if half is not None and _values(half) >= _values(skeleton):
        return dict(config), skeleton
    for size in _smaller_sizes(value):
        changed = with_values(config, [path], size)
        found = _built(changed)
        if found is None or _kinds(found) != wanted or _values(found) >= _values(skeleton):
            continue
        if not why_it_does_not_run(found) or why_it_does_not_run(skeleton):
            return changed, found
    return dict(config), skeleton


def _smaller_sizes(value: int) -> list[int]:
    """The powers of two below ``value``, and what divides it, ascending."""
    powers = {1 << bits for bits in range(value.bit_length())}
    divisors = {size for size in range(LEAST_SIZE, math.isqrt(value) + 1) if value % size == 0}
    return sorted(size for size in powers | divisors if LEAST_SIZE <= size < value)


def _value(config: Mapping[str, Any], path: Path) -> int:
    found = dict(integer_paths(build_config(config).to_dict())) | dict(integer_paths(dict(config)))
    return found[path]


def _built(config: Mapping[str, Any]) -> Skeleton | None:
    try:
        return build_skeleton(config)
    except InputRejected:
        return None


def _shallow(config: Mapping[str, Any], skeleton: Skeleton, field: Path) -> Mapping[str, Any]:
    """The config with so many of the first blocks that one of each kind is there, where its class can be built so."""
    try:
        layers = layer_list(skeleton)
    except InputRejected:
        return config
    count = max(_firsts(skeleton, layers)) + 1
    paths = [path for path, value in integer_paths(build_config(config).to_dict()) if value == layers.count]
    for path in sorted((p for p in paths if p != field), key=lambda path: "layer" not in path[-1]):
        try:
            changed = lists_in_step(config, path, layers.count, range(count))
        except InputRejected:
            continue
        found = _built(changed)
        if found is not None and _kinds(found) == _kinds(skeleton) and len(found.shapes) < len(skeleton.shapes):
            return changed
    return config


def _firsts(skeleton: Skeleton, layers: LayerList) -> Iterator[int]:
    """The number of the first block of each kind."""
    known: list[tuple[Mapping[str, Any], int]] = []
    for index in range(layers.count):
        found = kind_of(skeleton, layers, index)
        if not any(not any(True for _ in unlike(held, other, found, index)) for held, other in known):
            known.append((found, index))
            yield index


def small_growth(value: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Pairs of small values with the ratio of these two, then with a ratio of two to three, then the two themselves."""
    common = math.gcd(value, wanted)
    old, new = value // common, wanted // common
    times = max(-(-4 // old), 1)
    while old * times < min(value, MOST_COUNT):
        yield old * times, new * times
        times *= 2
    if value > MOST_COUNT:
        yield from ((size, size * 3 // 2) for size in (LEAST_SIZE, 4 * LEAST_SIZE))
    yield value, wanted
