"""The lists of a config that hold one entry for each block, found by trying, and the same lists for other blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graftkit.architecture.blocks.trace import why_it_does_not_run
from graftkit.architecture.skeleton import Path, build_config, build_skeleton, with_values
from graftkit.errors import InputRejected

#: What begins the reason of a class that cannot be built.
NOT_BUILT = "not built"


def lists_in_step(
    config: Mapping[str, Any], depth: Path, count: int, order: Sequence[int], moved: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return ``config`` with ``len(order)`` blocks at its path ``depth``, every list of one entry per block in that order.

    ``count`` is how many blocks there are; ``moved`` are values of further fields beside that path. A list that the class derives
    from other values is written out where it would derive another one than the blocks had.

    Raises:
        InputRejected: the class refuses the config, or derives a list that cannot be written otherwise.
    """
    section = depth[:-1]
    changed = with_values(config, [depth], len(order))
    for name, value in (moved or {}).items():
        changed = with_values(changed, [(*section, name)], value)
    wanted = {}
    for name in per_layer_lists(config, depth, count):
        if moved and name in moved:
            continue
        held = getattr(section_of(build_config(config), section), name)
        wanted[name] = type(held)(held[source] for source in order)
        if name in plain_section(config, section):
            changed = with_values(changed, [(*section, name)], list(wanted[name]))
    for name in _unlike(changed, section, wanted):
        changed = with_values(changed, [(*section, name)], list(wanted[name]))
    if left := _unlike(changed, section, wanted):
        raise InputRejected(
            f"config.json: {'.'.join((*section, left[0]))}: the class computes it from the number of blocks, and not as these"
            " blocks have it"
        )
    return changed


def is_by_number(value: Any) -> bool:
    """Whether a value of config.json is a mapping whose every key is a number."""
    return isinstance(value, dict) and bool(value) and all(str(key).isdecimal() for key in value)


def section_of(built: Any, section: Path) -> Any:
    """The config object at a path of config.json."""
    for key in section:
        built = getattr(built, key)
    return built


def plain_section(config: Mapping[str, Any], section: Path) -> Mapping[str, Any]:
    """The part of config.json at a path; empty where nothing is written there."""
    for key in section:
        config = config.get(key) or {}
    return config


def _unlike(config: Mapping[str, Any], section: Path, wanted: Mapping[str, Any]) -> list[str]:
    """The lists that the class makes of ``config`` and that are not the wanted ones."""
    if not wanted:
        return []
    built = section_of(build_config(config), section)
    return [name for name, value in wanted.items() if list(getattr(built, name, None) or ()) != list(value)]


def per_layer_lists(config: Mapping[str, Any], depth: Path, count: int) -> tuple[str, ...]:
    """Names of the lists of one entry per block, beside the value at ``depth`` that counts ``count`` blocks.

    Such a list is as long as there are blocks. Of those, the class derives some with one more entry for one more block; the fewest
    others count that must get one more entry as well before the class can be built with one more block, and runs as it did.
    """
    section = depth[:-1]
    plain, grown = plain_section(config, section), with_values(config, [depth], count + 1)
    long = [
        name
        for name, value in vars(section_of(build_config(config), section)).items()
        if isinstance(value, list | tuple) and len(value) == count and not name.startswith("_")
    ]
    derived = [name for name in long if _is_derived(_without(grown, section, name), section, name, count + 1)]
    written = [name for name in long if name in plain and name not in derived]
    if not written:
        return tuple(derived)
    before = _why_it_fails(config)
    subsets = [s for size in range(len(written) + 1) for s in itertools.combinations(written, size)]
    failures: dict[tuple[str, ...], str] = {}
    for chosen in subsets:
        failures[chosen] = _why_it_fails(_lengthened(grown, section, [*derived, *chosen], count))
        if failures[chosen] == before:
            return (*derived, *chosen)
    can_be_built = (chosen for chosen, why in failures.items() if not why.startswith(NOT_BUILT))
    return (*derived, *next(can_be_built, written))


def _is_derived(config: Mapping[str, Any], section: Path, name: str, length: int) -> bool:
    """Whether the class by itself gives a list of this name and length."""
    try:
        found = getattr(section_of(build_config(config), section), name, None)
    except InputRejected:
        return False
    return isinstance(found, list | tuple) and len(found) == length


def _lengthened(config: Mapping[str, Any], section: Path, names: Sequence[str], count: int) -> Mapping[str, Any]:
    """The config in which what is written of the last of ``count`` blocks is said of one more: in lists, and by its number."""
    plain = plain_section(config, section)
    for name in names:
        if name in plain:
            config = with_values(config, [(*section, name)], [*plain[name], plain[name][-1]])
    for name, value in plain.items():
        if is_by_number(value) and str(count - 1) in value:
            config = with_values(config, [(*section, name)], {**value, str(count): value[str(count - 1)]})
    return config


def _why_it_fails(config: Mapping[str, Any]) -> str:
    """The kind of error with which the class cannot be built or does not run without values; empty where it does."""
    try:
        return why_it_does_not_run(build_skeleton(config)).partition(":")[0]
    except InputRejected as error:
        return f"{NOT_BUILT}: {error}"


def _without(config: Mapping[str, Any], section: Path, name: str) -> dict[str, Any]:
    if not section:
        return {key: value for key, value in config.items() if key != name}
    key, *rest = section
    inner = config.get(key)
    return {**config, key: _without(inner, tuple(rest), name)} if isinstance(inner, dict) else dict(config)


def small_integers(config: Mapping[str, Any], section: Path, most: int) -> Iterator[tuple[str, int]]:
    """Yield the integers from 0 to ``most`` of one section of a config, written or by default: what may place kinds of blocks."""
    built = section_of(build_config(config), section).to_dict()
    for name, value in built.items():
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most and "token" not in name:
            yield name, value
