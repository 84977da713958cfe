"""How a tensor of a sparse class is made of matrices of a dense layer: the ways that are tried, for each kind of name on disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graftkit.architecture.widths.growth import kind

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """One expert's matrix, or all of them ``stacked``: dense matrices of these kinds, turned or not, joined along ``axis``."""

    kinds: tuple[str, ...]
    axis: int = 0
    turned: bool = False
    stacked: bool = False

    def names(self, name: str) -> tuple[str, ...]:
        """The dense matrices, by name in memory, that the tensor ``name`` on disk is made of: those of the same block."""
        numbers = [step for step in name.split(".") if step.isdigit()]
        return tuple(_numbered(one, numbers) for one in self.kinds)

    def __str__(self) -> str:
        """In words, for a plan."""
        joined = " and ".join(one.rpartition("*.")[2] for one in self.kinds)
        return f"{joined}{' turned' if self.turned else ''}"


@dataclass(frozen=True, slots=True)
class New:
    """No copy: a router, by its scheme, or what the class gives a new model."""

    by: Literal["router", "class", "zero"]


Way = Copy | New


def not_there(ways: Mapping[str, Way], names: Iterable[str], dense: Container[str]) -> str | None:
    """The first matrix that one of these tensors is made of, by the way of its kind, and that the dense class has not."""
    made = ((way, name) for name in names if isinstance(way := ways[kind(name)], Copy))
    return next((one for way, name in made for one in way.names(name) if one not in dense), None)


def _numbered(kind_: str, numbers: Sequence[str]) -> str:
    rest = iter(numbers)
    return ".".join(next(rest) if step == "*" else step for step in kind_.split("."))


def copies(shape: Shape, dense: Mapping[str, Shape], num_experts: int) -> Iterator[Copy]:
    """Every way in which a tensor of this shape may be made of the matrices ``dense``, by kind: one, or two joined."""
    stacked = len(shape) == 3 and shape[0] == num_experts
    inner = shape[1:] if stacked else shape
    if len(inner) != 2:
        return
    for turned in (False, True):
        shapes = {name: one[::-1] if turned else one for name, one in dense.items()}
        yield from (Copy((name,), 0, turned, stacked) for name, one in shapes.items() if one == inner)
        for axis in (0, 1):
            for pair in itertools.permutations(shapes, 2):
                if _joined(shapes[pair[0]], shapes[pair[1]], axis) == inner:
                    yield Copy(pair, axis, turned, stacked)


def _joined(one: Shape, other: Shape, axis: int) -> Shape | None:
    if one[1 - axis] != other[1 - axis]:
        return None
    size = one[axis] + other[axis]
    return (size, one[1]) if axis == 0 else (one[0], size)


def of_kinds(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of each kind; a kind with several shapes is left out."""
    found: dict[str, set[Shape]] = {}
    for name, shape in shapes.items():
        found.setdefault(kind(name), set()).add(shape)
    return {name: next(iter(held)) for name, held in found.items() if len(held) == 1}


def built(
    way: Copy,
    parts: Sequence[Any],
    num_experts: int,
    turn: Callable[[Any], Any],
    join: Callable[..., Any],
    stack: Callable[..., Any],
) -> Any:
    """The tensor that ``way`` makes of ``parts``, with these functions on tensors, lazy ones or torch's."""
    made = [turn(part) for part in parts] if way.turned else list(parts)
    one = made[0] if len(made) == 1 else join(made, way.axis)
    return stack(one, num_experts) if way.stacked else one
