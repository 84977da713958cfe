"""Which ids, blocks, inner axes and modules of a result are which of its source: what every comparison of the two reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from graftkit.architecture.axis_maps import AxisMaps
from graftkit.architecture.index_map import IndexMap, Run
from graftkit.architecture.module_paths import below, is_below, is_side, moved

if TYPE_CHECKING:
    from torch import Tensor

#: The part that is everything.
WHOLE = ("", "")


@dataclass(frozen=True, slots=True)
class Correspondence:
    """Which ids, blocks and widths of a result are which of its source; None stands for the identity.

    ``ids`` are rows of tables and entries of logits; ``live`` is how many ids the source's tokenizer has, of which probes draw those
    that the result has too. ``blocks`` are positions in the main stack of layers, whose name in the source's memory is ``stack``. A
    base model alone names everything without the first word of it. ``behind_first`` says of the class that its first hidden state
    is what the first block gives, where most have what it takes. ``part`` are the names in memory of one module in source and
    result, where the result is a part of the source; what lies outside of it has one name in both. ``positions`` are rows of learned
    tables of positions, ``widths`` the parameters with an inner axis of another size, by the source's names in memory.
    ``gone`` are modules of the source, and all in them, that the result has others for.
    """

    ids: IndexMap | None = None
    live: int | None = None
    blocks: IndexMap | None = None
    stack: str = ""
    behind_first: bool = False
    part: tuple[str, str] = WHOLE
    positions: IndexMap | None = None
    widths: Mapping[str, AxisMaps] = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    @classmethod
    def of_ids(cls, source: int, result: int, live: int, fresh: Iterable[int]) -> Correspondence:
        """For tables with ``source`` and ``result`` rows: every id keeps its row, except the ``fresh`` ones."""
        return cls(IndexMap.grown(source, result, fresh), live)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Correspondence:
        """Read what ``dataclasses.asdict`` and JSON have made of one."""
        maps = {
            name: value and IndexMap.from_json(value)
            for name, value in found.items()
            if name in ("ids", "blocks", "positions")
        }
        one, other = found.get("part", WHOLE)
        widths = {name: AxisMaps.from_json(value) for name, value in found.get("widths", {}).items()}
        return cls(**{**found, **maps, "part": (one, other), "widths": widths, "gone": tuple(found.get("gone", ()))})

    def then(self, later: Correspondence) -> Correspondence:
        """The composition of this correspondence and ``later``, which comes after it.

        Blocks that ``later`` leaves out with their stack, as an encoder leaves out those of the decoder, correspond to none.
        """
        if self.blocks is not None and not self._holds_stack(later.part):
            return replace(self, blocks=None, stack="", behind_first=False).then(later)
        live = self.live if self.ids is not None else later.live
        stack = moved(later.stack, *self.part[::-1]) if later.stack else self.stack
        part = _part_of_part(self.part, later.part)
        return Correspondence(
            _then(self.ids, later.ids), live, _then(self.blocks, later.blocks), stack or self.stack,
            self.behind_first or later.behind_first, part, _then(self.positions, later.positions), dict(self._widths_then(later)),
            (*self.gone, *(name for gone in later.gone if (name := self.module_in_source(gone)) is not None)),
        )  # fmt: skip

    def _widths_then(self, later: Correspondence) -> Iterator[tuple[str, AxisMaps]]:
        """The parameters that either makes wider and that both have."""
        for name, maps in self.widths.items():
            between = self.module_in_result(name)
            if between is not None and later.module_in_result(between) is not None:
                yield name, maps.then(later.widths[between]) if between in later.widths else maps
        for between, maps in later.widths.items():
            origin = self.module_in_source(between)
            if origin is not None and origin not in self.widths:
                yield origin, maps

    def _holds_stack(self, part: tuple[str, str]) -> bool:
        """Whether a part of the result has the main stack."""
        stack = self.stack_in_result(self.stack)
        return stack is not None and is_below(stack, part[0])

    def within_source(self) -> Correspondence:
        """The source beside itself, over the ids that the result keeps."""
        if self.ids is None:
            return IDENTITY
        runs = tuple((start, start, length) for _, start, length in self.ids.runs)
        return Correspondence(IndexMap(self.ids.source, self.ids.source, runs), self.live)

    def stack_in_result(self, name: str) -> str | None:
        """What the result calls a list of modules of the source; None where it is no part of the result."""
        return moved(name, *self.part)

    def blocks_of(self, stack: str) -> IndexMap | None:
        """Which block is which in the result's list of modules of that name; None where each is its own, or it is another list."""
        theirs = moved(stack, *self.part[::-1])
        return self.blocks if theirs and theirs in self._stacks() else None

    def inside(self, module: str) -> Correspondence:
        """The same for what a module gives: where the main stack is not part of it, its blocks are no blocks of that."""
        within = not module or any(stack.startswith(f"{module}.") for stack in self._stacks())
        return self if within or self.blocks is None else replace(self, blocks=None)

    def of_backbones(self) -> Correspondence:
        """The same for the modules that ``part`` names, run alone: they name everything from themselves on."""
        widths = {inner: maps for name, maps in self.widths.items() if (inner := moved(name, self.part[0], ""))}
        return replace(self, part=WHOLE, stack=moved(self.stack, self.part[0], "") or "", widths=widths)

    def module_in_source(self, name: str) -> str | None:
        """What the source calls a module or parameter of the result; None where it is part of a new block."""
        found = moved(name, *self.part[::-1])
        return found if found is None or self.blocks is None else _renamed_module(found, self._stacks(), self.blocks)

    def module_in_result(self, name: str) -> str | None:
        """What the result calls a module or parameter of the source; None where its block or module was dropped."""
        if self._is_gone(name):
            return None
        kept = name if self.blocks is None else _renamed_module(name, self._stacks(), self.blocks.inverse)
        return None if kept is None else moved(kept, *self.part)

    def _is_gone(self, name: str) -> bool:
        places = (place for gone in self.gone for place in (gone, gone.partition(".")[2]) if place)
        return any(is_below(name, place) for place in places)

    def output_in_source(self, name: str) -> str | None:
        """What the source calls an output of the result, such as ``hidden_states.3``; None where a new block gives it."""
        return name if self.blocks is None else self._renamed_output(name, self.blocks)

    def output_in_result(self, name: str) -> str | None:
        """What the result calls an output of the source; None where the block that gives it was dropped."""
        return name if self.blocks is None else self._renamed_output(name, self.blocks.inverse)

    def shown(self, name: str) -> str:
        """A module, parameter or output of the source for a sentence, with the result's name for it where that is another."""
        other = self.output_in_result(name) if "hidden_states" in name else self.module_in_result(name)
        return name if other in (name, None) else f"{name} (in the result {other})"

    def _stacks(self) -> tuple[str, ...]:
        return tuple(stack for stack in (self.stack, self.stack.partition(".")[2]) if stack)

    def _renamed_output(self, name: str, blocks: IndexMap) -> str | None:
        """The first hidden state is what the first block takes, and the last what the whole stack gives, normed in most classes.

        Those between are what the block before them gives. Where the first is what the first block gives, all but the last are
        numbered as their blocks.
        """
        stem, _, number = name.rpartition(".")
        kind = stem.rpartition(" ")[2]
        side, states, _ = kind.partition("hidden_states")  # ProphetNet has hidden_states_ngram beside them
        if not (number.isdigit() and states) or (side and not is_side(side.removesuffix("_"), self.stack)):
            return name
        index = int(number)
        if index == blocks.result:
            return f"{stem}.{blocks.source}"
        if self.behind_first or index == 0:
            origin = blocks.origin(index) if self.behind_first else 0
            return None if origin is None else f"{stem}.{origin}"
        origin = blocks.origin(index - 1)
        return None if origin is None or origin + 1 == blocks.source else f"{stem}.{origin + 1}"

    @property
    def fresh_ids(self) -> tuple[int, ...]:
        """Ids of the result whose rows are new."""
        return () if self.ids is None else self.ids.fresh

    @property
    def drawn_ids(self) -> Sequence[int] | None:
        """The source's ids that its tokenizer has and the result keeps, ascending: what inputs of both are made of; None for all."""
        if self.ids is None or self.live is None:
            return None if self.live is None else range(self.live)
        lost = {index for index in self.ids.dropped if index < self.live}
        return tuple(index for index in range(self.live) if index not in lost) if lost else range(self.live)

    @property
    def drawn_in_result(self) -> Sequence[int] | None:
        """What the result calls :attr:`drawn_ids`; None for all."""
        drawn = self.drawn_ids
        if drawn is None or self.ids is None or self.ids.in_place:
            return drawn
        places = dict(zip(self.ids.kept, self.ids.places, strict=True))
        return tuple(places[index] for index in drawn)

    def ids_in_result(self, ids: Tensor) -> Tensor:
        """Token ids of the source under the numbers that the result has for them; 0 for one that it has not."""
        return ids if self.ids is None or self.ids.in_place else self.ids.places_of(ids)

    @property
    def reordered(self) -> bool:
        """Whether a row of the result's tables stands among others than in the source, so that a kernel may sum otherwise."""
        return self.ids is not None and (self.more_rows != 0 or not self.ids.in_place)

    @property
    def more_rows(self) -> int:
        """How many rows the result's tables have beyond the source's; negative where they have fewer."""
        return 0 if self.ids is None else self.ids.result - self.ids.source

    def over_ids(self, old: Tensor, new: Tensor) -> bool:
        """Whether the last axes of an output are the ids of source and result."""
        return self.ids is not None and (old.shape[-1], new.shape[-1]) == (self.ids.source, self.ids.result)

    def columns(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """The corresponding columns of both, where the last axis is that of ids or a width that has grown; else both as they are."""
        if self.ids is None or not self.over_ids(old, new):
            return self.channels(old, new)
        return self.ids.of_source(old), self.ids.of_result(new)

    def channels(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """The corresponding columns of hidden states of another width; both as they are where it is the same or no one map tells."""
        sizes = (old.shape[-1:], new.shape[-1:])
        if sizes[0] == sizes[1] or not all(sizes):
            return old, new
        axes = (one for maps in self.widths.values() for _, one in maps.axes)
        known = {one for one in axes if ((one.source,), (one.result,)) == sizes}
        if len(known) != 1:
            return old, new
        (indices,) = known
        return indices.of_source(old), indices.of_result(new)

    def widened(self, name: str) -> AxisMaps | None:
        """The maps of a parameter of the source with an inner axis of another size; a base model alone may name it."""
        if name in self.widths:
            return self.widths[name]
        return next((maps for other, maps in self.widths.items() if other.partition(".")[2] == name), None)

    def is_near_width(self, module: str) -> bool:
        """Whether a module of the source, or what stands beside it, has a parameter with an inner axis of another size."""
        return any(True for _ in self._near(module))

    def _near(self, module: str) -> Iterator[AxisMaps]:
        outer = module.rpartition(".")[0]
        for name, maps in self.widths.items():
            if is_below(name, outer) or is_below(name.partition(".")[2], outer):
                yield maps

    def entries(self, module: str, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor] | None:
        """The corresponding entries of what a module of the source gives; None where no one map says which they are.

        An axis of another size is that of ids, or it has the sizes of an axis of a parameter of the module or beside it.
        """
        old, new = self.columns(old, new)
        if old.ndim != new.ndim:
            return None
        for axis, sizes in enumerate(zip(old.shape, new.shape, strict=True)):
            if sizes[0] == sizes[1]:
                continue
            known = {one for maps in self._near(module) for _, one in maps.axes if (one.source, one.result) == sizes}
            if len(known) != 1:
                return None
            (indices,) = known
            old, new = indices.of_source(old, axis), indices.of_result(new, axis)
        return old, new

    def runs_of_rows(self, old: Tensor, new: Tensor) -> tuple[Run, ...] | None:
        """The runs of corresponding rows of a parameter: of ids or positions where it is indexed by them, else all.

        None where it has another number of rows for another reason.
        """
        if (found := self._map_of_rows(old, new)) is not None:
            return found.runs
        return ((0, 0, len(old) if old.ndim else 1),) if old.shape[:1] == new.shape[:1] else None

    def values(self, name: str, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """The corresponding values of a parameter of the source in both."""
        maps = self.widened(name)
        return self.rows(old, new) if maps is None or not maps.fits(old.shape, new.shape) else maps.pair(old, new)

    def gradients(self, name: str, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """What has to be equal of a parameter's gradients in both: those of corresponding slices, of copies their sum."""
        maps = self.widened(name)
        return self.rows(old, new) if maps is None or not maps.fits(old.shape, new.shape) else (old, maps.summed(new))

    def rows(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """The corresponding rows of a parameter that is indexed by ids or positions; else both as they are."""
        found = self._map_of_rows(old, new)
        return (old, new) if found is None else (found.of_source(old, 0), found.of_result(new, 0))

    def _map_of_rows(self, old: Tensor, new: Tensor) -> IndexMap | None:
        """Which row of a parameter is which, where it is indexed by ids, or by positions, and these are others in the result."""
        sizes = (old.shape[:1], new.shape[:1])
        maps = (found for found in (self.ids, self.positions) if found is not None)
        return next((found for found in maps if sizes == ((found.source,), (found.result,))), None)


#: Everything is where it was.
IDENTITY = Correspondence()


def _then(earlier: IndexMap | None, later: IndexMap | None) -> IndexMap | None:
    if earlier is None or later is None:
        return earlier if later is None else later
    return earlier.then(later)


def _part_of_part(first: tuple[str, str], later: tuple[str, str]) -> tuple[str, str]:
    """The part that is left of ``first`` when ``later`` takes a part of that."""
    if WHOLE in (first, later):
        return later if first == WHOLE else first
    if is_below(later[0], first[1]):
        return below(first[0], later[0][len(first[1]) :].lstrip(".")), later[1]
    if is_below(first[1], later[0]):
        return first[0], below(later[1], first[1][len(later[0]) :].lstrip("."))
    raise ValueError(f"{later[0]} is no part of {first[1]}")


def _renamed_module(name: str, stacks: tuple[str, ...], blocks: IndexMap) -> str | None:
    for stack in stacks:
        index, dot, rest = name.removeprefix(f"{stack}.").partition(".")
        if name.startswith(f"{stack}.") and index.isdigit():
            origin = blocks.origin(int(index))
            return None if origin is None else f"{stack}.{origin}{dot}{rest}"
    return name
