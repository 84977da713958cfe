"""One config value made larger: the new config, what grows by it, and how, as an experiment on a miniature says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.axis_maps import AxisMaps
from graftkit.architecture.blocks.trace import why_it_does_not_run
from graftkit.architecture.embeddings import INPUT, OUTPUT
from graftkit.architecture.layers import layer_stacks
from graftkit.architecture.skeleton import Path, Skeleton, build_config, build_skeleton, with_values
from graftkit.architecture.widths.fields import Field, find_field, value_in
from graftkit.architecture.widths.growth import AxisGrowth, Growths, growths, kind, value_behind
from graftkit.architecture.widths.miniature import miniature, small_growth
from graftkit.errors import InputRejected, RecipeError, few, printable
from graftkit.operations.widths.rescaling import GROWTH, find_rescaling, root_of
from graftkit.operations.widths.search import Found, NotPreserved, closest, search
from graftkit.operations.widths.trial import Trial, maps_of

Values = Mapping[Path, int]


@dataclass(frozen=True, slots=True)
class Widening:
    """A config with one larger value, its skeleton, and by name in memory the parameters that grow, with their maps.

    ``value`` is what ``field`` was; ``found`` says how each kind grows and which new slices are zero.
    """

    field: Field
    value: int
    wanted: int
    config: Mapping[str, Any]
    skeleton: Skeleton
    maps: Mapping[str, AxisMaps]
    found: Found

    def is_zero(self, name: str) -> bool:
        """Whether the new slices of a parameter are zero."""
        return kind(self.skeleton.tied.get(name, name)) in self.found.zero

    @property
    def rounds(self) -> bool:
        """Whether old values are multiplied by what they have to be rounded for."""
        rescaling = self.found.rescaling
        return rescaling is not None and not all(rescaling.is_exact(maps.scale) for maps in self.scaled.values())

    @property
    def scaled(self) -> Mapping[str, AxisMaps]:
        """The parameters whose old values are multiplied, with their maps."""
        return {name: maps for name, maps in self.maps.items() if maps.scale != 1.0}

    def notes(self) -> Iterator[str]:
        """What a plan says of it."""
        grown = few({kind(name) for name in self.maps})
        yield f"{self.field.shown} was {self.value}, is {self.wanted}; wider are {grown}"
        if self.found.change:
            zero = f"zero in what is new: {few(self.found.zero)}; " if self.found.zero else ""
            yield f"the function changes: {self.found.why}; {zero}a small model's outputs move by {self.found.change:.2g} of their size"
        elif self.found.repeated:
            yield "new slices are copies of old ones, each read by those that read the old one"
        else:
            yield f"zero in what is new, so that the model does what it did: {few(self.found.zero)}"
        if self.found.rescaling is not None:
            scaled, epsilons = (
                few({kind(name) for name in self.scaled}),
                few([".".join(path) for path in self.found.rescaling.epsilons]),
            )
            root = next(maps.scale for maps in self.scaled.values())
            yield (
                f"norms take a mean over zeros too: multiplied by {root:.6g} are {scaled}, and {epsilons} of config.json by"
                f" {root * root:.6g}"
            )
        if not self.found.gradients_seen:
            yield "this class could not be differentiated on a small model: whether new slices get a gradient was not seen"


def find_widening(
    config: Mapping[str, Any], skeleton: Skeleton, name: str, wanted: int, *, allow_change: bool = False
) -> Widening:
    """Find out how the model of ``config`` grows when the field ``name`` becomes ``wanted``.

    Raises:
        RecipeError: there is no such field, it does not grow so, or it is no width.
        InputRejected: nothing that was tried keeps the function, unless ``allow_change`` lets it be another.
    """
    where = f"sizes.{name}"
    try:
        field = find_field(config, name)
    except ValueError as error:
        raise RecipeError(str(error), field=where) from error
    values = _with_what_stays(config, skeleton, field, wanted)
    changed, grown, value = _grown(config, skeleton, field, values, wanted, where)
    after = build_skeleton(changed, skeleton.architecture)
    if (said := why_it_does_not_run(after)) and not why_it_does_not_run(skeleton):
        raise RecipeError(f"{skeleton.architecture} does not run with {wanted}: {said}", field=where)
    try:
        settle = closest if allow_change else _refuse
        found = _tried(config, skeleton, field, values, grown, (value, wanted), settle)
    except NotPreserved as error:
        raise InputRejected(
            f"{skeleton.architecture}: {field.shown} cannot grow from {value} to {wanted}: {error}"
        ) from error
    if found.rescaling is not None:
        changed = found.rescaling.config(changed, root_of(found.rescaling, grown))
        after = build_skeleton(changed, skeleton.architecture)
    return Widening(field, value, wanted, changed, after, dict(_maps(skeleton, grown, found)), found)


def _maps(skeleton: Skeleton, grown: Growths, found: Found) -> Iterator[tuple[str, AxisMaps]]:
    """The maps of every parameter that grows or is multiplied."""
    rescaling = found.rescaling
    root = 1.0 if rescaling is None else root_of(rescaling, grown)
    for full in skeleton.shapes:
        if full not in grown and (rescaling is None or kind(full) not in rescaling.kinds):
            continue
        try:
            yield full, maps_of(skeleton.tied.get(full, full), grown.get(full, {}), found.layouts, rescaling, root)
        except ValueError as error:
            raise InputRejected(f"{skeleton.architecture}: {printable(full)}: {error}") from error


def _with_what_stays(config: Mapping[str, Any], skeleton: Skeleton, field: Field, wanted: int) -> Values:
    """What must be written out so that it stays as it is: the width of a head, where the class derives it from what grows.

    A class may read it though its config has no field for it: then it is written out if fewer axes grow so.
    """
    section: Any = build_config(config)
    for key in field.path[:-1]:
        section = getattr(section, key)
    names = [section.attribute_map.get(name, name) for name in ("num_attention_heads", "hidden_size")]
    heads, width, size = (value_in(section, name) for name in (*names, "head_dim"))
    if field.path[-1] not in names or not heads or not width:
        return {}
    fixed = {(*field.path[:-1], "head_dim"): size or width // heads}
    if "head_dim" in section.to_dict() and field.path[-1] == names[0]:
        return fixed
    return fixed if _axes(config, skeleton, field, fixed, wanted) < _axes(config, skeleton, field, {}, wanted) else {}


def _axes(config: Mapping[str, Any], skeleton: Skeleton, field: Field, values: Values, wanted: int) -> float:
    """How many axes grow; infinitely many where the class refuses the values."""
    try:
        after = build_skeleton(_changed(config, field.path, values, wanted), skeleton.architecture)
    except InputRejected:
        return math.inf
    found = growths(skeleton, after, field.value or 0, wanted) or {}
    return sum(map(len, found.values()))


def _grown(
    config: Mapping[str, Any], skeleton: Skeleton, field: Field, values: Values, wanted: int, where: str
) -> tuple[dict[str, Any], Growths, int]:
    """The new config, what grows by it, and the value that was there.

    Raises:
        RecipeError: it is no larger one, or what changes is no width.
    """
    changed = _changed(config, field.path, values, wanted)
    try:
        after = build_skeleton(changed, skeleton.architecture)
        value = field.value if field.value is not None else _derived(config, skeleton, field, values, after, wanted)
    except InputRejected as error:
        raise RecipeError(str(error), field=where) from error
    if value is None and skeleton.shapes == after.shapes:
        raise RecipeError(f"{field.shown} makes no tensor larger", field=where)
    if value is None:
        raise RecipeError(f"{field.shown} is null, and no tensor tells what it stands for", field=where)
    if wanted <= value:
        also = "it is that already" if wanted == value else "widen only makes larger"
        raise RecipeError(f"{field.shown} is {value}, and {wanted} is no larger value: {also}", field=where)
    grown = growths(skeleton, after, value, wanted)
    if why := _no_width(skeleton, after, grown):
        raise RecipeError(f"{field.shown} {why}", field=where)
    return changed, grown or {}, value


def _changed(config: Mapping[str, Any], path: Path, values: Values, wanted: int) -> dict[str, Any]:
    for other, value in values.items():
        config = with_values(config, [other], value)
    return with_values(config, [path], wanted)


def _derived(
    config: Mapping[str, Any], skeleton: Skeleton, field: Field, values: Values, after: Skeleton, wanted: int
) -> int | None:
    """What a value that is null stands for: axes are in proportion to it."""
    further = build_skeleton(_changed(config, field.path, values, 2 * wanted), skeleton.architecture)
    return value_behind(skeleton, after, wanted, further, 2 * wanted)


def _no_width(before: Skeleton, after: Skeleton, grown: Growths | None) -> str:
    """Why a config value is none that widens tensors; empty where it is one."""
    if layer_stacks(before) != layer_stacks(after):
        return "counts modules of a list: insert_blocks and arrange_blocks give a model more blocks, and nothing here more of the rest"
    if grown is None:
        return "makes other parameters, not larger ones"
    if not grown:
        return "makes no tensor larger"
    tables = before.weight_names(INPUT) | before.weight_names(OUTPUT)
    if any(name in tables and 0 in axes for name, axes in grown.items()):
        return "is the size of the vocabulary: extend_vocab makes that larger"
    if odd := next((name for name, axes in grown.items() if not _all_linear(axes)), None):
        return f"does not make {printable(odd)} larger in proportion"
    return ""


def _tried(
    config: Mapping[str, Any], skeleton: Skeleton, field: Field, values: Values, grown: Growths, pair: tuple[int, int],
    settle: Callable[[Trial, NotPreserved], Found],
) -> Found:  # fmt: skip
    """What the experiment says, on the smallest pair of values with which the class works and the same kinds grow.

    ``settle`` is asked where nothing that was tried keeps the function.

    Raises:
        NotPreserved: ``settle`` has nothing to say.
        InputRejected: the class cannot be tried.
    """
    small = miniature(_changed(config, field.path, values, pair[0]), skeleton, field.path)
    trials = Trials(small, skeleton.architecture, field.path, frozenset(_kinds(grown)))
    why = None
    try:
        return trials.settle((pair[0], GROWTH * pair[0]), search, rescaled=True)
    except NotPreserved as error:
        why = error
    except InputRejected:  # no norm has the axis
        pass
    return trials.settle(pair, lambda trial: _searched(trial, why, settle), rescaled=False)


def _searched(trial: Trial, why: NotPreserved | None, settle: Callable[[Trial, NotPreserved], Found]) -> Found:
    """What the search says; ``why`` is the reason for which rescaling norms did not do, if it was tried."""
    try:
        return search(trial)
    except NotPreserved as error:
        return settle(trial, why or error)


@dataclass(frozen=True, slots=True)
class Trials:
    """Small models of one class, in which ``kinds`` of parameters and their axes grow with the value at ``path``."""

    small: Mapping[str, Any]
    architecture: str
    path: Path
    kinds: frozenset[tuple[str, int]]

    def settle(self, pair: tuple[int, int], settle: Callable[[Trial], Found], *, rescaled: bool) -> Found:
        """What ``settle`` says of the smallest pair of values like this one with which the class can be tried.

        Raises:
            NotPreserved: so says ``settle``.
            InputRejected: the class cannot be tried, or where norms are ``rescaled``, it has none over the axes.
        """
        refusal = InputRejected(f"{self.architecture}: no small model of it grows as this one does")
        for old, new in small_growth(*pair):
            try:
                trial = self._trial(old, new, rescaled=rescaled) if not rescaled or new == GROWTH * old else None
                if trial is not None:
                    return settle(trial)
            except InputRejected as error:
                refusal = error
        raise refusal

    def _trial(self, old: int, new: int, *, rescaled: bool) -> Trial | None:
        """A small model with ``old`` and with ``new``; None where other kinds grow, or nothing is there to be rescaled."""
        configs = with_values(self.small, [self.path], old), with_values(self.small, [self.path], new)
        before, after = (build_skeleton(one, self.architecture) for one in configs)
        grown = growths(before, after, old, new)
        if grown is None or _kinds(grown) != self.kinds or not all(_all_linear(axes) for axes in grown.values()):
            return None
        if odd := _of_several_growths(grown):
            raise InputRejected(f"{self.architecture}: {few(odd)} grow along other axes under one name")
        rescaling = find_rescaling(configs[0], before, grown) if rescaled else None
        return None if rescaled and rescaling is None else Trial(configs, before, grown, rescaling)


def _refuse(_: Trial, why: NotPreserved) -> Found:
    raise NotPreserved(f"{why}; allow_change: true does it all the same, and measures what changes") from why


def _kinds(grown: Growths) -> set[tuple[str, int]]:
    return {(kind(name), axis) for name, axes in grown.items() for axis in axes}


def _of_several_growths(grown: Growths) -> list[str]:
    """Kinds whose parameters do not all grow along the same axes, as those of a list of layers that have other roles."""
    axes: dict[str, set[frozenset[int]]] = {}
    for name, found in grown.items():
        axes.setdefault(kind(name), set()).add(frozenset(found))
    return [name for name, found in axes.items() if len(found) > 1]


def _all_linear(axes: Mapping[int, AxisGrowth]) -> bool:
    return all(growth.is_linear for growth in axes.values())
