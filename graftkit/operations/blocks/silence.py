"""New blocks that begin as the identity: what they write to the residual stream is zero, and each of them will learn."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.blocks.identity import find_writers
from graftkit.architecture.blocks.kinds import kind_of, unlike
from graftkit.architecture.zero_flow import never_learning
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import chunks, equal_bytes
from graftkit.checkpoint.tensors import LazyTensor, Zeros
from graftkit.errors import InputRejected, RecipeError, few
from graftkit.operations.blocks.arrange import Arranged
from graftkit.operations.blocks.stack import Stack, zero_on_disk


@dataclass(frozen=True, slots=True)
class Silent:
    """A checkpoint whose new blocks give what they are given. ``writers`` are what is zero in each, by place, less its number."""

    arranged: Arranged
    checkpoint: Checkpoint
    writers: Mapping[int, tuple[str, ...]]

    @property
    def shown(self) -> str:
        """What is zero in the new blocks, in words."""
        return few({name for names in self.writers.values() for name in names})


def silenced(arranged: Arranged) -> Silent:
    """Make what the new blocks write to the residual stream zero.

    Raises:
        InputRejected: no zeros make one of them the identity, or not whole tensors, or zeros would never learn.
    """
    skeleton, layers = arranged.skeleton, arranged.stack.layers
    writers: dict[int, tuple[str, ...]] = {}
    kinds: list[tuple[Mapping[str, Any], int]] = []
    for place in arranged.fresh:
        kind = kind_of(skeleton, layers, place)
        known = next((other for held, other in kinds if not any(True for _ in unlike(held, other, kind, place))), None)
        if known is None:
            found = find_writers(skeleton, layers, place)
            writers[place] = tuple(name.removeprefix(layers.prefix(place)) for name in found)
            kinds.append((kind, place))
        else:
            writers[place] = writers[known]
    names = [f"{layers.prefix(place)}{name}" for place, held in writers.items() for name in held]
    tensors = arranged.checkpoint.tensors
    changes: dict[str, LazyTensor] = {
        name: Zeros(tensors[name].dtype, tensors[name].shape) for name in zero_on_disk(skeleton, tensors, names)
    }
    checkpoint = arranged.checkpoint.with_tensors(changes)
    zeros = [name for name, tensor in checkpoint.tensors.items() if isinstance(tensor, Zeros)]
    stuck = never_learning(skeleton, {found.name for found in skeleton.memory_names(zeros).values()})
    if new := [name for name in stuck if name.startswith(tuple(layers.prefix(place) for place in writers))]:
        raise InputRejected(
            f"{skeleton.architecture}: the new blocks would never learn: no gradient reaches {few(new)}; use init: copy"
        )
    return Silent(arranged, checkpoint, writers)


def refuse_twins(silent: Silent, *, by_bytes: bool) -> None:
    """Refuse a new block beside an identity block of the same values: both get the same input and the same gradient.

    Without ``by_bytes`` nothing is read, and only blocks are known that an operation made before.

    Raises:
        RecipeError: there is one.
    """
    stack, order = silent.arranged.stack, silent.arranged.order
    for place, names in silent.writers.items():
        source, before, behind = order[place], order[place - 1], order[place + 1 : place + 2]
        for beside in (before, *behind):
            if _is_silent(stack, beside, names, by_bytes) and _are_equal(stack, source, beside, names, by_bytes):
                raise RecipeError(
                    f"block {beside} gives what it is given already, and a new one beside it would begin with the same values,"
                    " get the same gradient and so learn the same at first; train that block first, or put the new one"
                    " elsewhere"
                )


def _is_silent(stack: Stack, block: int, writers: Iterable[str], by_bytes: bool) -> bool:
    tensors = [stack.checkpoint.tensors[disk] for disk, rest in stack.members[block].items() if rest in writers]
    if not by_bytes:
        return bool(tensors) and all(isinstance(tensor, Zeros) for tensor in tensors)
    return bool(tensors) and not any(any(map(any, chunks(tensor))) for tensor in tensors)


def _are_equal(stack: Stack, block: int, other: int, writers: Iterable[str], by_bytes: bool) -> bool:
    """Whether two blocks hold the same, less their writers."""
    if block == other:
        return True
    first, second = (
        {rest: stack.checkpoint.tensors[disk] for disk, rest in stack.members[index].items() if rest not in writers}
        for index in (block, other)
    )
    if first.keys() != second.keys():
        return False
    same = equal_bytes if by_bytes else operator.eq
    return all(same(first[name], second[name]) for name in first)
