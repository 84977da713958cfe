"""A checkpoint with other blocks: each a block of the source, its bytes copied, and the config in step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from graftkit.architecture.blocks.depth import rearranged
from graftkit.architecture.blocks.hidden_states import begins_behind_first
from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.operations.blocks.stack import Stack, names_on_disk
from graftkit.operations.weights.learning_rates import FILE


@dataclass(frozen=True, slots=True)
class Arranged:
    """A checkpoint whose block ``i`` comes from block ``order[i]`` of ``stack``.

    ``names`` gives for each block its tensors, name on disk now -> name on disk then; ``moved`` says whether a block is the
    source's own, the first of its copies.
    """

    stack: Stack
    checkpoint: Checkpoint
    skeleton: Skeleton
    order: tuple[int, ...]
    moved: tuple[bool, ...]
    names: tuple[Mapping[str, str], ...]

    @property
    def correspondence(self) -> Correspondence:
        """Each block of the source is its first copy; the others correspond to none."""
        origins = [source if own else None for source, own in zip(self.order, self.moved, strict=True)]
        blocks = IndexMap.of_origins(self.stack.layers.count, origins)
        layers = self.stack.layers
        return Correspondence(blocks=blocks, stack=layers.path, behind_first=begins_behind_first(self.skeleton, layers))

    @property
    def fresh(self) -> tuple[int, ...]:
        """The places of the copies."""
        return tuple(place for place, own in enumerate(self.moved) if not own)


def arrange(stack: Stack, order: Sequence[int], copies: Collection[int] = ()) -> Arranged:
    """Give the checkpoint the blocks ``order`` by their present numbers; one that is named again is a copy.

    What stands at the places ``copies`` is a copy in any case, and for them another block may be taken: where the config wants
    another kind there, the nearest of that kind.

    Raises:
        InputRejected: the config cannot count these blocks, or with them one would be of another kind.
    """
    config, skeleton, found = rearranged(stack.checkpoint.config, stack.structure.skeleton, stack.layers, order, copies)
    kept = [None if place in copies else source for place, source in enumerate(found)]
    moved = tuple(source is not None and source not in kept[:place] for place, source in enumerate(kept))
    names = names_on_disk(stack, skeleton, found)
    checkpoint = _with_blocks(stack, moved, names).with_documents({"config.json": config})
    if FILE in checkpoint.documents:
        multipliers = _multipliers(checkpoint.documents[FILE], stack, found)
        checkpoint = checkpoint.with_documents({FILE: multipliers})
    return Arranged(stack, checkpoint, skeleton, found, moved, names)


def _with_blocks(stack: Stack, moved: Sequence[bool], names: Sequence[Mapping[str, str]]) -> Checkpoint:
    source = stack.checkpoint
    renamed = {old: new for own, found in zip(moved, names, strict=True) if own for old, new in found.items()}
    dropped = [name for block in stack.members for name in block if name not in renamed]
    result = source.with_tensors(dict.fromkeys(dropped)).with_names(renamed)
    sizes = {
        shard: sum(result.tensors[name].nbytes for name in held)
        for shard, held in result.shards.items()
        if held != source.shards[shard]
    }
    for own, found in zip(moved, names, strict=True):
        if own:
            continue
        tensors: dict[str, LazyTensor] = {new: source.tensors[old] for old, new in found.items()}
        shard = min(sizes, key=lambda name: sizes[name]) if sizes else _shard_of(result, renamed, found)
        result = result.with_tensors(tensors, shard=shard)
        sizes[shard] = sizes.get(shard, 0) + sum(tensor.nbytes for tensor in tensors.values())
    return result


def _multipliers(held: Mapping[str, float], stack: Stack, order: Sequence[int]) -> dict[str, float]:
    """Learning-rate multipliers by name in memory, each block with those of the block that it comes from."""
    around = {name: value for name, value in held.items() if not name.startswith(f"{stack.layers.path}.")}
    for place, source in enumerate(order):
        old, new = stack.layers.prefix(source), stack.layers.prefix(place)
        around |= {new + name.removeprefix(old): value for name, value in held.items() if name.startswith(old)}
    return around


def _shard_of(checkpoint: Checkpoint, renamed: Mapping[str, str], block: Mapping[str, str]) -> str:
    """The file that holds the first tensor of the block that is copied."""
    first = renamed[next(iter(block))]
    return next(shard for shard, held in checkpoint.shards.items() if first in held)
