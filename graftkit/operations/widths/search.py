"""How a model grows in one width, found by trying: where old slices belong, and the fewest new ones that must be zero."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graftkit.architecture.widths.growth import AxisGrowth
from graftkit.architecture.widths.layouts import Grouped, Layout, grouped_layouts, repeated_layouts
from graftkit.errors import few
from graftkit.operations.widths.rescaling import Rescaling
from graftkit.operations.widths.trial import Layouts, Trial

#: Combinations of layouts that are tried where the usual ones fail.
MOST_TRIALS = 64

#: Distances that differ by less, relative, are equal: what float64 may add up otherwise.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Found:
    """The layouts by kind of parameter, and the kinds whose new slices are zero; where slices are ``repeated`` none is new.

    ``rescaling`` is what else becomes of norms over the axis. ``gradients_seen`` says whether the class could be differentiated,
    so that new slices are known to learn. Where nothing keeps the function, ``change`` says how far the outputs of the small model
    move, relative to their size, and ``why``; else it is 0.
    """

    layouts: Layouts
    zero: tuple[str, ...]
    repeated: bool = False
    gradients_seen: bool = True
    change: float = 0.0
    why: str = ""
    rescaling: Rescaling | None = None


class NotPreserved(ValueError):
    """No layout and no zeros were found with which the wider model does what it did; the message says what stands in the way."""


def search(trial: Trial) -> Found:
    """Find how old slices go on as they did, with new ones beside them; where that fails, with copies of them.

    Raises:
        NotPreserved: nothing that was tried keeps the function, nothing depends on the new slices, or they would never learn.
    """
    layouts = _first(trial, _combinations(trial, grouped_layouts), trial.kinds)
    if layouts is None:
        layouts = _first(trial, _combinations(trial, repeated_layouts), ())
        if layouts is None:
            raise NotPreserved(_why_not(trial))
        return Found(layouts, (), repeated=True, rescaling=trial.rescaling)
    if trial.keeps(layouts, ()):
        raise NotPreserved(
            "new slices have no effect on inputs that the model takes today, so this is no width: positions, labels and the like are"
            " other operations' to add"
        )
    zero = dict.fromkeys(trial.in_order())
    for name in list(zero):
        without = {other: None for other in zero if other != name}
        if trial.keeps(layouts, without):
            zero = without
    dead = trial.dead(layouts, zero)
    if dead:
        raise NotPreserved(f"new slices would never learn: no gradient reaches those of {', '.join(dead)}")
    return Found(layouts, tuple(zero), gradients_seen=dead is not None, rescaling=trial.rescaling)


def closest(trial: Trial, why: NotPreserved) -> Found:
    """Layouts that belong together, of new slices or else of copies, with the fewest zeros that move a small model no further.

    Raises:
        NotPreserved: the wider model gives wider outputs, or of other shapes with all of it, or new slices would never learn.
    """
    change, layouts = _moved_together(
        [(trial.distance(one, trial.kinds), one) for one in _combinations(trial, grouped_layouts)]
    )
    repeated = not math.isfinite(change)
    if repeated:
        change, layouts = _moved_together(
            [(trial.distance(one, ()), one) for one in _combinations(trial, repeated_layouts)]
        )
    if trial.widens_outputs or not math.isfinite(change):
        raise NotPreserved(f"{why}; and all of its hidden states would be others, and of another width")
    zero = {} if repeated else dict.fromkeys(trial.in_order())
    for name in list(zero):
        without = {other: None for other in zero if other != name}
        if trial.distance(layouts, without) <= change * (1 + ROUNDING):
            zero = without
    dead = trial.dead(layouts, zero)
    if dead:
        raise NotPreserved(f"{why}; and no gradient would reach the new slices of {', '.join(dead)}")
    return Found(layouts, tuple(zero), repeated, gradients_seen=dead is not None, change=change, why=str(why))


def _moved_together(tried: Sequence[tuple[float, Layouts]]) -> tuple[float, Layouts]:
    """The first of the layouts at whose distance there are others, else the closest; infinite where none gives outputs.

    Where the slices of all parameters move together, wherever to, the model computes the same; where they part it computes something
    else each time, and which of those is closest is chance. The usual ones, which move them together, are tried first.
    """
    found = [(distance, layouts) for distance, layouts in tried if math.isfinite(distance)]
    for distance, layouts in found:
        if sum(abs(other - distance) <= distance * ROUNDING for other, _ in found) > 1:
            return distance, layouts
    return min(found, key=lambda one: one[0], default=(math.inf, {}))


def _first(trial: Trial, tried: Iterable[Layouts], zero: Iterable[str]) -> Layouts | None:
    zero = tuple(zero)
    return next((layouts for layouts in tried if trial.keeps(layouts, zero)), None)


def _combinations(trial: Trial, ways: Callable[[AxisGrowth], Iterator[Layout]]) -> Iterator[Layouts]:
    """Layouts of all kinds together: the usual ones first, then every combination, those next to the first ways first."""
    places = [(name, axis) for name, axes in trial.kinds.items() for axis in axes]
    options = [list(ways(trial.kinds[name][axis])) for name, axis in places]
    if not all(options):
        return
    seen: set[tuple[Layout, ...]] = set()
    numbers = itertools.chain(_usual(trial, places, options), _by_distance([len(found) for found in options]))
    for chosen in itertools.islice(numbers, MOST_TRIALS):
        layouts = tuple(found[index] for found, index in zip(options, chosen, strict=True))
        if layouts not in seen:
            seen.add(layouts)
            yield _by_kind(places, layouts)


def _usual(trial: Trial, places: list[tuple[str, int]], options: list[list[Layout]]) -> Iterator[tuple[int, ...]]:
    """Fused parts one behind the other: as many groups as an axis grows faster than the slowest; and the same in more groups."""
    units = [trial.kinds[name][axis].unit for name, axis in places]
    for more in range(1, 1 + max(len(found) for found in options)):
        wanted = [Grouped(more * unit // min(units)) for unit in units]
        numbers = [found.index(one) if one in found else None for found, one in zip(options, wanted, strict=True)]
        if not any(number is None for number in numbers):
            yield tuple(number for number in numbers if number is not None)
    for number in range(max(len(found) for found in options)):
        yield tuple(min(number, len(found) - 1) for found in options)


def _by_distance(sizes: list[int]) -> Iterator[tuple[int, ...]]:
    """Every choice of one of so many each, those first whose numbers add up to the least."""
    for total in range(sum(sizes) - len(sizes) + 1):
        yield from _adding_up(sizes, total)


def _adding_up(sizes: list[int], total: int) -> Iterator[tuple[int, ...]]:
    if not sizes:
        if not total:
            yield ()
        return
    for number in range(min(sizes[0], total + 1)):
        for rest in _adding_up(sizes[1:], total - number):
            yield (number, *rest)


def _by_kind(places: list[tuple[str, int]], layouts: tuple[Layout, ...]) -> Mapping[str, Mapping[int, Layout]]:
    found: dict[str, dict[int, Layout]] = {}
    for (name, axis), layout in zip(places, layouts, strict=True):
        found.setdefault(name, {})[axis] = layout
    return found


def _why_not(trial: Trial) -> str:
    """What is known of why nothing kept the function: gains of norms over the axis, or a value that does not divide."""
    tried = "none of the layouts and zeros that were tried keep the function"
    gains = [name for name in trial.kinds if trial.is_gain(name)]
    if gains:
        also = "" if trial.rescaling is None else _why_not_rescaled(trial, trial.rescaling)
        return f"{tried}; norms have this axis ({few(gains)}), and a mean over it takes in what is new{also}"
    growth = next(axis for axes in trial.kinds.values() for axis in axes.values())
    if growth.wanted % growth.value:
        return f"no layout and no zeros keep the function, and {growth.wanted} is no multiple of {growth.value}, to repeat slices"
    return tried


def _why_not_rescaled(trial: Trial, rescaling: Rescaling) -> str:
    """What is known of why gains and epsilons do not make up for it: a norm that does more, or a number that depends on the width."""
    epsilons = few([".".join(path) for path in rescaling.epsilons])
    odd = trial.odd_norms(next(_combinations(trial, grouped_layouts)))
    if odd:
        return (
            f"; {few(odd)} is more than a root mean square, for which other gains and another {epsilons} would make up"
        )
    numbers = trial.other_numbers()
    more = few(numbers) if numbers else "something else"
    return f"; other gains and another {epsilons} do not make up for it, since {more} depends on it too"
