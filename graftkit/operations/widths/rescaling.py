"""What keeps a norm over a wider axis as it was: new entries of zero make its mean square smaller by the ratio of the widths.

Let ``root`` be the square root of that ratio, old over new. A root mean square norm gives of ``x`` beside zeros just what it gave of
``x`` when its gain is ``root`` times what it was and its epsilon ``root``² times. Where another norm has the same epsilon from the
config and is not wider, as one of queries, the matrix whose output it takes is multiplied by the root instead. Whether all of it is
true of a class is found out on a small model of it, as every other rule is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from graftkit.architecture.fresh_values import own_values
from graftkit.architecture.modules_before import modules_before
from graftkit.architecture.skeleton import Path, Skeleton, build_config, build_skeleton, with_values
from graftkit.architecture.widths.growth import AxisGrowth, Growths, kind
from graftkit.errors import InputRejected

if TYPE_CHECKING:
    from torch import nn


#: What an axis grows by in the trial, as its root is a power of two: so nothing is rounded there.
GROWTH = 4


@dataclass(frozen=True, slots=True)
class Rescaling:
    """By kind of parameter, what its values are offset by before they are multiplied by a root; and where the config has epsilons."""

    kinds: Mapping[str, float]
    epsilons: tuple[Path, ...]

    def is_exact(self, root: float) -> bool:
        """Whether no value has to be rounded: all are multiplied by a power of two and nothing else."""
        return math.frexp(root)[0] == 0.5 and not any(self.kinds.values())

    def config(self, config: Mapping[str, Any], root: float) -> dict[str, Any]:
        """The config with its epsilons multiplied by the square of a root."""
        values, found = dict(_floats(build_config(config).to_dict())), dict(config)
        for path in self.epsilons:
            found = with_values(found, [path], values[path] * root * root)
        return found


def find_rescaling(config: Mapping[str, Any], skeleton: Skeleton, grown: Growths) -> Rescaling | None:
    """What has to be rescaled for norms over the axes that grow; None where there are none, or nothing tells their epsilon."""
    offsets = {full: _offset_of_gain(skeleton, full, axes) for full, axes in grown.items()}
    gains = {full: offset for full, offset in offsets.items() if offset is not None}
    owners = {full.rpartition(".")[0] for full in gains}
    if len({Fraction(grown[full][0].old, grown[full][0].new) for full in gains}) != 1:
        return None
    epsilons, touched = list[Path](), set[str]()
    for path, value in _floats(build_config(config).to_dict()):
        moved = _moved(config, skeleton, path, value)
        if moved & owners:
            epsilons.append(path)
            touched |= moved
    feeders = _feeders(skeleton, sorted(touched - owners))
    if not epsilons or feeders is None:
        return None
    return Rescaling(
        {kind(full): offset for full, offset in gains.items()} | dict.fromkeys(feeders, 0.0), tuple(epsilons)
    )


def root_of(rescaling: Rescaling, grown: Growths) -> float:
    """What values are multiplied by: the root of old over new along the axis of the norms."""
    axis = next(axes[0] for full, axes in grown.items() if kind(full) in rescaling.kinds and set(axes) == {0})
    return math.sqrt(axis.old / axis.new)


def is_gain(module: nn.Module, full: str) -> bool:
    """Whether a parameter is a vector of a module whose class says that it is a norm."""
    return "norm" in type(module).__name__.lower() and getattr(module, full.rpartition(".")[2]).ndim == 1


def _offset_of_gain(skeleton: Skeleton, full: str, axes: Mapping[int, AxisGrowth]) -> float | None:
    """What a gain is stored without: a new one means one. None of what is no gain, as a bias."""
    owner: nn.Module = skeleton.model.get_submodule(full.rpartition(".")[0])
    values = own_values(skeleton, full, 0) if is_gain(owner, full) and set(axes) == {0} else None
    if values is None or full.rpartition(".")[2].endswith("bias"):
        return None
    first = float(values[0])
    return 1.0 - first if first in (0.0, 1.0) and bool((values == first).all()) else None


def _floats(value: object, prefix: Path = ()) -> Iterator[tuple[Path, float]]:
    """Each number with a point in nested dicts, with its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _floats(item, (*prefix, str(key)))
    elif isinstance(value, float):
        yield prefix, value


def _moved(config: Mapping[str, Any], skeleton: Skeleton, path: Path, value: float) -> set[str]:
    """Names of the modules of which a number of their own is another when the config has another value at ``path``."""
    try:
        other = build_skeleton(with_values(config, [path], value / 2 or 0.5), skeleton.architecture)
    except InputRejected:
        return set()
    modules = dict(other.model.named_modules())
    return {
        name
        for name, module in skeleton.model.named_modules()
        if name in modules and numbers_of(module) != numbers_of(modules[name])
    }


def numbers_of(module: nn.Module) -> dict[str, float]:
    """What a module itself holds as numbers with a point."""
    return {key: value for key, value in vars(module).items() if isinstance(value, float)}


def _feeders(skeleton: Skeleton, norms: list[str]) -> set[str] | None:
    """The kinds of all parameters of the modules whose outputs these norms take; None where that is not seen of one."""
    before = modules_before(skeleton, norms) if norms else {}
    if before.keys() != set(norms):
        return None
    return {kind(name) for name in skeleton.shapes if name.rpartition(".")[0] in before.values()}
