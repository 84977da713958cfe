"""The main stack of a checkpoint: which of its tensors belong to which block, by their names on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def names_on_disk(stack: Stack, new: Skeleton, source: int, place: int) -> dict[str, str]:
    """What the tensors of block ``source`` are called on disk as block ``place``: old name -> new name.

    The number of the block is found in each name, and transformers' own renamings must agree.

    Raises:
        InputRejected: they do not.
    """
    found: dict[str, str] = {}
    for disk, rest in stack.members[source].items():
        wanted = f"{stack.layers.prefix(place)}{rest}"
        steps = disk.split(".")
        for index in (index for index, step in enumerate(steps) if step == str(source)):
            name = ".".join([*steps[:index], str(place), *steps[index + 1 :]])
            if new.memory_names([name])[name].name == wanted:
                found[disk] = name
                break
        else:
            raise InputRejected(
                f"{stack.checkpoint.name}: tensor {printable(disk)!r} does not say in its name which block it belongs to"
            )
    return found


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
