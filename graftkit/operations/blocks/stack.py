"""The main stack of a checkpoint: which of its tensors belong to which block, by their names on disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.layers import LayerList, layer_list
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, RecipeError, few, printable
from graftkit.recipe.block_numbers import resolve_blocks


@dataclass(frozen=True, slots=True)
class Stack:
    """The blocks of a checkpoint. ``members`` gives for each block its tensors: name on disk -> name in memory, less its number."""

    checkpoint: Checkpoint
    structure: Structure
    layers: LayerList
    members: tuple[Mapping[str, str], ...]

    def numbers(self, items: Iterable[int | str], field: str) -> tuple[int, ...]:
        """The blocks that a recipe names in its ``field``.

        Raises:
            RecipeError: one of them is not there.
        """
        try:
            return resolve_blocks(items, self.layers.count)
        except ValueError as error:
            raise RecipeError(f"{self.layers.path}: {error}", field=field) from error


def find_stack(checkpoint: Checkpoint) -> Stack:
    """Find the main stack, the decoder's where there are two, and the tensors of each of its blocks.

    Raises:
        InputRejected: the class has no list of blocks, or several, or the checkpoint holds more blocks than its config counts.
    """
    structure = account(checkpoint)
    layers = layer_list(structure.skeleton)
    members: list[dict[str, str]] = [{} for _ in range(layers.count)]
    for disk, (name, _) in structure.memory.items():
        if not name.startswith(f"{layers.path}."):
            continue
        number, _, rest = name.removeprefix(f"{layers.path}.").partition(".")
        if not number.isdigit() or int(number) >= layers.count:
            raise InputRejected(
                f"{checkpoint.name}: tensor {printable(disk)!r} stands behind the {layers.count} blocks that the config counts, as"
                " those of multi-token prediction do, and its number would be another block's"
            )
        members[int(number)][disk] = rest
    return Stack(checkpoint, structure, layers, tuple(members))


def names_on_disk(stack: Stack, new: Skeleton, order: Sequence[int]) -> tuple[dict[str, str], ...]:
    """What the tensors of each block are called on disk where blocks stand as in ``order``: old name -> new name, for each place.

    The number of the block is found in each name, and transformers' own renamings must agree.

    Raises:
        InputRejected: they do not.
    """
    found: list[dict[str, str]] = [{} for _ in order]
    left = [(place, disk, rest) for place, source in enumerate(order) for disk, rest in stack.members[source].items()]
    for nth in itertools.count():
        tried = {(place, disk): _renumbered(disk, order[place], place, nth) for place, disk, _ in left}
        if lost := next((disk for (_, disk), name in tried.items() if name is None), None):
            raise InputRejected(
                f"{stack.checkpoint.name}: tensor {printable(lost)!r} does not say in its name which block it belongs to"
            )
        memory = new.memory_names(name for name in tried.values() if name is not None)
        unlike = []
        for place, disk, rest in left:
            name = tried[place, disk] or ""
            if memory[name].name == f"{stack.layers.prefix(place)}{rest}":
                found[place][disk] = name
            else:
                unlike.append((place, disk, rest))
        left = unlike
        if not left:
            break
    return tuple(found)


def _renumbered(name: str, source: int, place: int, nth: int) -> str | None:
    """A name in which the ``nth`` step that is the number ``source`` is ``place``; None where there are not so many."""
    steps = name.split(".")
    numbers = [index for index, step in enumerate(steps) if step == str(source)]
    if nth >= len(numbers):
        return None
    return ".".join([*steps[: numbers[nth]], str(place), *steps[numbers[nth] + 1 :]])


def zero_on_disk(new: Skeleton, tensors: Iterable[str], writers: Iterable[str]) -> tuple[str, ...]:
    """Names on disk of the tensors that hold ``writers`` (names in memory) and nothing else.

    Raises:
        InputRejected: a tensor on disk holds other values beside a writer's.
    """
    names, wanted = new.memory_names(tensors), frozenset(writers)
    held = {disk: name for name in wanted for disk in names.on_disk(name)}
    beside = [name for name, disks in names.disk.items() if name not in wanted and held.keys() & set(disks)]
    if beside or len({held[disk] for disk in held}) != len(wanted):
        raise InputRejected(
            f"{new.architecture}: what writes to the residual stream is stored in one tensor with {few(beside)}; use init: copy"
        )
    return tuple(held)
