"""More experts of a model whose files hold each expert's matrices by themselves: a tensor on disk for each that is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graftkit.architecture.accounting import Structure
from graftkit.architecture.fused import Slice, slices
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import FLOATING, LazyTensor, Zeros
from graftkit.errors import InputRejected, printable
from graftkit.operations.weights.facts import model_facts
from graftkit.operations.weights.fresh import Target
from graftkit.operations.widths.fresh import SlicesOfScheme
from graftkit.operations.widths.widening import Widening
from graftkit.recipe import WeightScheme


def new_experts(
    checkpoint: Checkpoint, structure: Structure, widening: Widening, scheme: WeightScheme, seed: tuple[object, ...]
) -> dict[str, dict[str, LazyTensor]]:
    """The tensors of new experts by their names, by the file of the last expert of the same layer.

    Raises:
        InputRejected: old experts would get other numbers, or their names do not tell these.
    """
    shards = {disk: shard for shard, held in checkpoint.shards.items() for disk in held}
    names, found = structure.memory, dict[str, dict[str, LazyTensor]]()
    for name, maps in widening.maps.items():
        grown = dict(maps.axes).get(0)
        if grown is None or not any(names[disk].converted for disk in names.on_disk(name)):
            continue
        if any(grown.origin(expert) != expert for expert in range(grown.source)):
            raise InputRejected(
                f"{printable(name)}: old experts would get other numbers, and their names on disk with them"
            )
        for disks in _by_matrix(slices(names, name, checkpoint.tensors)):
            for place in range(len(disks), grown.result):
                origin = grown.origin(place)
                disk = _numbered(disks, place)
                made = (
                    _made(checkpoint, widening, name, disks[-1], disk, scheme, seed)
                    if origin is None
                    else checkpoint.tensors[disks[origin]]
                )
                found.setdefault(shards[disks[-1]], {})[disk] = made
    return found


def _by_matrix(held: Mapping[str, Slice]) -> list[list[str]]:
    """Names on disk of each matrix of an expert, those of all experts in their order."""
    found: dict[int, dict[int, str]] = {}
    for disk, part in held.items():
        found.setdefault(part.start, {})[part.expert] = disk
    return [[disks[expert] for expert in sorted(disks)] for disks in found.values()]


def _numbered(disks: Sequence[str], place: int) -> str:
    """What the expert ``place`` is called, as the first two are.

    Raises:
        InputRejected: their names do not differ in one number.
    """
    first, second = (disk.split(".") for disk in disks[:2])
    places = [index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    if len(places) != 1 or len(first) != len(second) or not first[places[0]].isdigit():
        raise InputRejected(f"tensor {printable(disks[0])!r} does not say in its name which expert it belongs to")
    return ".".join([*first[: places[0]], str(place), *first[places[0] + 1 :]])


def _made(
    checkpoint: Checkpoint, widening: Widening, name: str, like: str, disk: str, scheme: WeightScheme, seed: tuple[object, ...]
) -> LazyTensor:  # fmt: skip
    """Zeros where the new slices of ``name`` are zero, else values by the scheme, as beside those of the expert ``like``."""
    old = checkpoint.tensors[like]
    if widening.is_zero(name):
        return Zeros(old.dtype, old.shape)
    if old.dtype not in FLOATING:
        raise InputRejected(f"tensor {printable(like)!r} is of dtype {old.dtype}, which new values cannot be made in")
    target = Target.find(like, name, widening.skeleton, converted=True)
    named = Target(disk, disk, target.skeleton, target.layout)
    rows = old.shape[0]
    return SlicesOfScheme(scheme, model_facts(widening.skeleton), seed, named, old, 0, [(0, None, rows)])(0, old.shape)
