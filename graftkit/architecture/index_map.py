"""Which index of one axis of a result is which of its source.

An :class:`IndexMap` is a partial map from the result's indices to the source's, and an injection unless slices are repeated; maps
compose as operations do, and what falls out of one map is out of the composition.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: ``(first index of the result, first index of the source, how many)``.
Run = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class IndexMap:
    """``runs`` of indices that correspond, ascending in the result, for axes of ``source`` and ``result`` indices."""

    source: int
    result: int
    runs: tuple[Run, ...]

    @classmethod
    def identity(cls, size: int) -> IndexMap:
        """Every index corresponds to itself."""
        return cls(size, size, ((0, 0, size),))

    @classmethod
    def grown(cls, source: int, result: int, fresh: Iterable[int]) -> IndexMap:
        """Every index below ``source`` corresponds to itself, except those in ``fresh``, whose values are new."""
        cuts = [-1, *sorted(index for index in set(fresh) if index < source), source]
        pairs = itertools.pairwise(cuts)
        runs = tuple((left + 1, left + 1, right - left - 1) for left, right in pairs if right - left > 1)
        return cls(source, result, runs)

    @classmethod
    def of_kept(cls, source: int, kept: Iterable[int]) -> IndexMap:
        """The result has the source's indices ``kept``, in this order, and no others."""
        runs: list[Run] = []
        count = 0
        for count, index in enumerate(kept, 1):
            place, start, length = runs[-1] if runs else (0, -1, 0)
            if runs and index == start + length:
                runs[-1] = (place, start, length + 1)
            else:
                runs.append((count - 1, index, 1))
        return cls(source, count, tuple(runs))

    @classmethod
    def of_origins(cls, source: int, origins: Sequence[int | None]) -> IndexMap:
        """Each index of the result has its own of ``origins``, an index of the source or None; none is there twice."""
        runs = ((place, index, 1) for place, index in enumerate(origins) if index is not None)
        return cls(source, len(origins), tuple(_joined(runs)))

    @classmethod
    def of_runs(cls, source: int, result: int, runs: Iterable[Run]) -> IndexMap:
        """The map of these runs, in any order; those that go on from one another are taken together."""
        return cls(source, result, tuple(_joined(run for run in runs if run[2])))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> IndexMap:
        """Read what ``dataclasses.asdict`` and JSON have made of one."""
        return cls(found["source"], found["result"], tuple((a, b, c) for a, b, c in found["runs"]))

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices of the source that the result has, in the result's order."""
        return tuple(index for _, start, length in self.runs for index in range(start, start + length))

    @property
    def places(self) -> tuple[int, ...]:
        """Where each of ``kept`` stands in the result."""
        return tuple(index for place, _, length in self.runs for index in range(place, place + length))

    @property
    def fresh(self) -> tuple[int, ...]:
        """Indices of the result that correspond to none of the source."""
        return tuple(_gaps(sorted((place, length) for place, _, length in self.runs), self.result))

    @property
    def dropped(self) -> tuple[int, ...]:
        """Indices of the source that the result does not have."""
        return tuple(_gaps(sorted((start, length) for _, start, length in self.runs), self.source))

    @property
    def in_place(self) -> bool:
        """Whether every index that corresponds to one has its number."""
        return all(place == start for place, start, _ in self.runs)

    @property
    def inverse(self) -> IndexMap:
        """The same map seen from the source."""
        runs = sorted((start, place, length) for place, start, length in self.runs)
        return IndexMap(self.result, self.source, tuple(runs))

    def of_source(self, values: Tensor, axis: int = -1) -> Tensor:
        """The corresponding slices of the source's ``values``, in the result's order; a view where they are one run."""
        return _select(values, axis, [(start, length) for _, start, length in self.runs])

    def of_result(self, values: Tensor, axis: int = -1) -> Tensor:
        """The corresponding slices of the result's ``values``; a view where they are one run."""
        return _select(values, axis, [(place, length) for place, _, length in self.runs])

    def summed(self, values: Tensor, axis: int = -1) -> Tensor:
        """The result's ``values`` added up where in the source they come from: the transpose of taking them from there.

        So the gradient of the source follows from that of the result. *Shape:* the source's along ``axis``.
        """
        import torch

        shape = list(values.shape)
        shape[axis] = self.source
        indices = torch.tensor(self.kept, dtype=torch.int64, device=values.device)
        return values.new_zeros(shape).index_add(axis, indices, self.of_result(values, axis))

    def pieces(self) -> Iterator[tuple[int, int | None, int]]:
        """The runs in the result's order, and between them what comes from none, as ``(place, None, how many)``."""
        end = 0
        for place, start, length in self.runs:
            if place > end:
                yield end, None, place - end
            yield place, start, length
            end = place + length
        if end < self.result:
            yield end, None, self.result - end

    def cut(self, start: int, stop: int) -> IndexMap | None:
        """The map of the source's indices from ``start`` to ``stop`` alone, where these and no others stand together in the result.

        What comes from none and stands behind such an index is taken with it.
        """
        inside = [run for run in self.runs if start <= run[1] and run[1] + run[2] <= stop]
        outside = [run for run in self.runs if run not in inside]
        if not inside or any(start < run[1] + run[2] and run[1] < stop for run in outside):
            return None
        low, high = inside[0][0], inside[-1][0] + inside[-1][2]
        if any(low <= run[0] < high for run in outside):
            return None
        end = min((run[0] for run in outside if run[0] >= high), default=self.result)
        return IndexMap(
            stop - start, end - low, tuple((place - low, first - start, size) for place, first, size in inside)
        )

    def origin(self, index: int) -> int | None:
        """The source's index of the result's ``index``; None where it has none."""
        found = (start + index - place for place, start, length in self.runs if place <= index < place + length)
        return next(found, None)

    def place(self, index: int) -> int | None:
        """The result's index of the source's ``index``; None where it was dropped."""
        found = (place + index - start for place, start, length in self.runs if start <= index < start + length)
        return next(found, None)

    def places_of(self, indices: Tensor) -> Tensor:
        """Where each of the source's ``indices`` stands in the result; 0 for what was dropped, and for what is no index."""
        table = _places(self).to(indices.device)
        return table[indices.clamp(0, self.source - 1)].to(indices.dtype)

    def then(self, later: IndexMap) -> IndexMap:
        """The composition of this map and ``later``, whose source is this one's result.

        Raises:
            ValueError: the two do not fit.
        """
        if later.source != self.result:
            raise ValueError(f"an axis of {self.result} is not one of {later.source}")
        return IndexMap(self.source, later.result, tuple(_joined(_composed(self.runs, later.runs))))


@functools.lru_cache(maxsize=4)
def _places(found: IndexMap) -> Tensor:
    """``(source,)`` the result's index of each index of the source."""
    import torch

    table = torch.zeros(found.source, dtype=torch.int64)
    table[torch.tensor(found.kept, dtype=torch.int64)] = torch.tensor(found.places, dtype=torch.int64)
    return table


def _gaps(runs: Iterable[tuple[int, int]], size: int) -> Iterator[int]:
    end = 0
    for start, length in runs:
        yield from range(end, start)
        end = max(end, start + length)
    yield from range(end, size)


def _composed(earlier: tuple[Run, ...], later: tuple[Run, ...]) -> Iterator[Run]:
    begins = [middle for middle, _, _ in earlier]
    for place, start, length in later:
        first, last = bisect.bisect_right(begins, start) - 1, bisect.bisect_left(begins, start + length)
        for number in range(max(first, 0), last):
            middle, source, count = earlier[number]
            low, high = max(start, middle), min(start + length, middle + count)
            if low < high:
                yield place + low - start, source + low - middle, high - low


def _joined(runs: Iterable[Run]) -> Iterator[Run]:
    """Runs in the result's order, those that go on from one another taken together."""
    held: Run | None = None
    for run in sorted(runs):
        if held is not None and (held[0] + held[2], held[1] + held[2]) == run[:2]:
            held = (held[0], held[1], held[2] + run[2])
            continue
        if held is not None:
            yield held
        held = run
    if held is not None:
        yield held


def _select(values: Tensor, axis: int, runs: list[tuple[int, int]]) -> Tensor:
    if len(runs) == 1:
        return values.narrow(axis, *runs[0])
    import torch

    indices = [index for start, length in runs for index in range(start, start + length)]
    return values.index_select(axis, torch.tensor(indices, dtype=torch.int64, device=values.device))
