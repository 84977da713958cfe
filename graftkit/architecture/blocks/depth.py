"""The config of a model with other blocks: their number, what speaks of single blocks, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graftkit.architecture.blocks.kinds import block_count, first_difference
from graftkit.architecture.blocks.numbered import (
    differing,
    is_other,
    kinds_of,
    names_blocks,
    placing_integers,
    renumbered,
    stated_by_list,
    subsets,
)
from graftkit.architecture.blocks.per_layer import lists_in_step
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

#: A config of the blocks of some order, its skeleton, and the order.
Fitted = tuple[dict[str, Any], Skeleton, tuple[int, ...]]


def rearranged(
    config: Mapping[str, Any], old: Skeleton, layers: LayerList, order: Sequence[int], copies: Collection[int] = ()
) -> Fitted:
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
    for path in _depth_paths(config, layers.count):
        depth = _Depth(config, path, old, layers)
        plain = depth.attempt(order)
        if plain.counts_others:
            continue
        if found := depth.fit(order, plain):
            return found
        built = depth.built(order, plain)
        if built.skeleton is None:
            refusals.append(plain.why)
            continue
        placing = depth.placing(built)
        if found := depth.fit_otherwise(order, copies, built, placing):
            return found
        raise InputRejected(f"{_what_places([name for name, _ in placing])}{built.why}")
    raise InputRejected(
        next(iter(refusals), f"{old.architecture}: no value of config.json counts the blocks of {layers.path}")
    )


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A config that was tried: its skeleton, where it can be built, and why it does not fit; empty where it does.

    ``counts_others``: what was set is the number of other blocks, or of something else.
    """

    config: dict[str, Any]
    skeleton: Skeleton | None
    why: str
    counts_others: bool = False

    @property
    def fits(self) -> bool:
        return self.skeleton is not None and not self.why and not self.counts_others


@dataclass(frozen=True, slots=True)
class _Depth:
    """One value of a config that may count its blocks, to be tried with other blocks."""

    config: Mapping[str, Any]
    path: Path
    old: Skeleton
    layers: LayerList

    def attempt(self, order: Sequence[int], moved: Mapping[str, Any] | None = None) -> _Attempt:
        """Try the blocks ``order`` with every list of one entry per block in step, and ``moved`` as it is given."""
        try:
            changed = lists_in_step(self.config, self.path, self.layers.count, order, moved)
        except InputRejected as error:
            return _Attempt({}, None, str(error))
        return self._judged(changed, order)

    def _judged(self, changed: dict[str, Any], order: Sequence[int]) -> _Attempt:
        try:
            new = build_skeleton(changed)
        except InputRejected as error:
            return _Attempt(changed, None, str(error))
        if block_count(new, self.layers) != len(order):
            return _Attempt(changed, new, "", counts_others=True)
        return _Attempt(changed, new, first_difference(self.old, new, self.layers, order) or "")

    def fit(self, order: Sequence[int], plain: _Attempt) -> Fitted | None:
        """The blocks ``order`` where lists alone say them: those of one entry per block, and the fewest that hold numbers of blocks."""
        moves = renumbered(self.config, self.path[:-1], order)
        if plain.fits:
            moves = {name: value for name, value in moves.items() if self._names_blocks(name, value)}
            cleaner = self.attempt(order, moves) if moves else plain
            return _fitted(cleaner if cleaner.fits else plain, order)
        found = _first_fitted((self.attempt(order, chosen) for chosen in subsets(moves)), order)
        return found or (_first_fitted(self._with_other_counts(order), order) if plain.skeleton else None)

    def built(self, order: Sequence[int], plain: _Attempt) -> _Attempt:
        """``plain`` where the class can be built so, else with the fewest fields moved that hold numbers of blocks, if that helps."""
        if plain.skeleton is not None:
            return plain
        moved = (self.attempt(order, chosen) for chosen in subsets(renumbered(self.config, self.path[:-1], order)))
        return next((found for found in moved if found.skeleton is not None and not found.counts_others), plain)

    def _names_blocks(self, name: str, value: Any) -> bool:
        return isinstance(value, list) and names_blocks(self.config, self.path[:-1], name, self.old, self.layers)

    def fit_otherwise(
        self, order: Sequence[int], copies: Collection[int], built: _Attempt, placing: Sequence[tuple[str, int]]
    ) -> Fitted | None:
        """The blocks ``order`` with other values of the integers that place kinds, with a list in their place, or with other copies."""
        return (
            _first_fitted(self._with_moved_integers(order, built, placing), order)
            or _first_fitted(self._stated_by_lists(order, built, placing), order)
            or self._with_other_copies(order, copies, built)
        )

    def _with_other_counts(self, order: Sequence[int]) -> Iterator[_Attempt]:
        """One more value that counts as many goes along, as that of a cache that is made for each block."""
        others = _depth_paths(self.config, self.layers.count) if len(order) != self.layers.count else []
        for path in others:
            if path[:-1] == self.path[:-1] and path != self.path:
                yield self.attempt(order, {path[-1]: len(order)})

    def _with_moved_integers(
        self, order: Sequence[int], built: _Attempt, placing: Sequence[tuple[str, int]]
    ) -> Iterator[_Attempt]:
        """One value that places kinds of blocks is moved by as much as the number of blocks at most."""
        most = abs(len(order) - self.layers.count)
        for name, value in placing:
            for tried in (value + step for size in range(1, most + 1) for step in (-size, size) if value + step >= 0):
                yield self._judged(with_values(built.config, [(*self.path[:-1], name)], tried), order)

    def _stated_by_lists(
        self, order: Sequence[int], built: _Attempt, placing: Sequence[tuple[str, int]]
    ) -> Iterator[_Attempt]:
        """A list of numbers says what a period said."""
        names = [name for name, _ in placing]
        for changed in stated_by_list(built.config, self.path[:-1], self.old, self.layers, order, names):
            yield self._judged(changed, order)

    def _with_other_copies(self, order: Sequence[int], copies: Collection[int], built: _Attempt) -> Fitted | None:
        """For each copy whose place is of another kind the nearest block of the next kind is tried, all lists in step with it."""
        kinds = kinds_of(self.old, self.layers)
        found, tried = list(order), {place: [order[place]] for place in copies}
        attempt = built
        while attempt.skeleton is not None and not attempt.counts_others:
            places = differing(kinds, kinds_of(attempt.skeleton, self.layers), found)
            if not places or not set(places) <= set(copies):
                return None
            for place in places:
                near = sorted(range(self.layers.count), key=lambda index: abs(index - order[place]))
                others = (i for i in near if all(is_other(kinds[i], i, kinds[one], one) for one in tried[place]))
                if (source := next(others, None)) is None:
                    return None
                found[place] = source
                tried[place].append(source)
            attempt = self.built(found, self.attempt(found))
            if attempt.fits:
                return _fitted(attempt, found)
        return None

    def placing(self, attempt: _Attempt) -> list[tuple[str, int]]:
        """The values that place kinds of blocks, in the config as it was or as it was tried."""
        found = dict(placing_integers(self.config, self.path, self.old, self.layers))
        if attempt.skeleton is not None:
            there = replace(self.layers, count=block_count(attempt.skeleton, self.layers) or 0)
            found |= dict(placing_integers(attempt.config, self.path, attempt.skeleton, there))
        return list(found.items())


def _what_places(names: Sequence[str]) -> str:
    """The fields that place kinds of blocks, as a sentence begins."""
    verb = "place" if len(names) > 1 else "places"
    return f"config.json: {', '.join(names)} {verb} kinds of blocks by number: " if names else ""


def _first_fitted(attempts: Iterable[_Attempt], order: Sequence[int]) -> Fitted | None:
    return next((_fitted(attempt, order) for attempt in attempts if attempt.fits), None)


def _fitted(attempt: _Attempt, order: Sequence[int]) -> Fitted | None:
    return None if attempt.skeleton is None else (attempt.config, attempt.skeleton, tuple(order))


def _within(layers: LayerList, name: str) -> bool:
    return name.startswith(f"{layers.path}.")


def _depth_paths(config: Mapping[str, Any], count: int) -> list[Path]:
    """Where the config may count its blocks: what is written, then defaults, names with ``layer`` in them first."""
    written, built = integer_paths(dict(config)), integer_paths(build_config(config).to_dict())
    found = dict.fromkeys(path for path, value in (*written, *built) if value == count)
    return sorted(found, key=lambda path: "layer" not in path[-1])
