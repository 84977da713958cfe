"""The tensors on disk of an upcycled model: experts as copies by bytes, routers made when they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graftkit.architecture.accounting import Structure
from graftkit.architecture.fresh_values import own_values
from graftkit.architecture.parameters import layout_of
from graftkit.architecture.skeleton import Skeleton
from graftkit.architecture.widths.growth import kind
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import computed
from graftkit.checkpoint.reading import torch_dtype
from graftkit.checkpoint.rearranged import Joined, joined, permuted, reshaped
from graftkit.checkpoint.tensors import LazyTensor, Zeros
from graftkit.errors import InputRejected, printable
from graftkit.initializers.fans import LINEAR
from graftkit.initializers.make import make
from graftkit.initializers.seeding import generator_for, seed_of
from graftkit.operations.experts.search import Upcycling
from graftkit.operations.experts.sources import Copy, New, built
from graftkit.operations.weights.facts import model_facts
from graftkit.recipe.weight_schemes import WeightScheme


def sparse_tensors(
    checkpoint: Checkpoint, structure: Structure, found: Upcycling, scheme: WeightScheme, seed: tuple[int, int]
) -> Checkpoint:
    """The checkpoint with experts in the place of dense layers, each in the file of the matrix that it is a copy of.

    Raises:
        InputRejected: a matrix of the dense layer is stored in a converted form.
    """
    names = _dense_on_disk(structure, found)
    dtype = checkpoint.tensors[next(iter(names.values()))].dtype
    num_experts = found.config[found.fields.experts]
    shards = {disk: shard for shard, held in checkpoint.shards.items() for disk in held}
    made: dict[str, dict[str, LazyTensor | None]] = {}
    memory = found.skeleton.memory_names(found.own)
    last = {_block(name): shards[disk] for name, disk in names.items()}
    for name, shape in found.own.items():
        way = found.ways[kind(name)]
        if isinstance(way, Copy):
            disks = [names[one] for one in way.names(name)]
            tensor, shard = _copied(way, [checkpoint.tensors[disk] for disk in disks], num_experts), shards[disks[0]]
        else:
            tensor = _new(way, name, shape, dtype, memory[name].name, found.skeleton, scheme, seed)
            shard = last.get(_block(name), next(iter(checkpoint.shards)))
        made.setdefault(shard, {})[name] = tensor
    result = checkpoint
    for shard, tensors in made.items():
        gone: dict[str, None] = {disk: None for disk in names.values() if shards[disk] == shard}
        result = result.with_tensors({**tensors, **gone}, shard=shard)
    left: dict[str, None] = {disk: None for disk in names.values() if disk in result.tensors and disk not in found.own}
    return result.with_tensors(left) if left else result


def _block(name: str) -> str:
    return next((step for step in name.split(".") if step.isdigit()), "")


def _dense_on_disk(structure: Structure, found: Upcycling) -> dict[str, str]:
    """Name in memory -> name on disk of what the dense class alone has."""
    names: dict[str, str] = {}
    for name in structure.skeleton.shapes:
        if name in found.skeleton.shapes:
            continue
        disk = structure.memory.stored_as(name)
        if disk is None:
            raise InputRejected(
                f"{printable(name)} is stored in a form that the loader converts; save the base once with transformers'"
                " save_original_format=False"
            )
        names[name] = disk
    return names


def _copied(way: Copy, parts: Sequence[LazyTensor], num_experts: int) -> LazyTensor:
    tensor: LazyTensor = built(way, parts, num_experts, lambda one: permuted(one, (1, 0)), joined, _stacked)
    return tensor


def _stacked(one: LazyTensor, count: int) -> LazyTensor:
    return reshaped(Joined((one,) * count), (count, *one.shape))


def _new(
    way: New, disk: str, shape: tuple[int, ...], dtype: str, name: str, skeleton: Skeleton, scheme: WeightScheme,
    seed: tuple[int, int],
) -> LazyTensor:  # fmt: skip
    if way.by == "zero":
        return Zeros(dtype, shape)
    if way.by == "router":
        facts, layout = model_facts(skeleton), layout_of(skeleton, name) or LINEAR
        return computed(
            dtype, shape, lambda: make(scheme, shape, torch_dtype(dtype), layout, generator_for(*seed, disk), facts)
        )
    if own_values(skeleton, name, 0) is None:
        raise InputRejected(f"{skeleton.architecture} does not say what a new {printable(name)} holds")

    def of_class() -> Any:
        return own_values(skeleton, name, seed_of(*seed, disk))

    return computed(dtype, shape, of_class)
