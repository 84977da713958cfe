"""The tensors on disk of a wider model: each made of its own old slices, and of zeros, new values or copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graftkit.architecture.accounting import Structure
from graftkit.architecture.axis_maps import AxisMaps
from graftkit.architecture.fused import slices
from graftkit.architecture.widths.growth import kind
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.grown import FreshSlices, grow_axis
from graftkit.checkpoint.rearranged import elementwise
from graftkit.checkpoint.tensors import FLOATING, LazyTensor, Zeros
from graftkit.errors import InputRejected, printable
from graftkit.operations.weights.facts import model_facts
from graftkit.operations.weights.fresh import Target
from graftkit.operations.widths.fresh import SlicesOfScheme
from graftkit.operations.widths.widening import Widening
from graftkit.recipe import WeightScheme


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor on disk that holds a parameter ``name`` or a part of it, with the maps of its own axes."""

    disk: str
    name: str
    maps: AxisMaps
    converted: bool


def grown_tensors(
    checkpoint: Checkpoint, structure: Structure, widening: Widening, scheme: WeightScheme, seed: tuple[object, ...]
) -> dict[str, LazyTensor]:
    """Every tensor on disk that becomes wider, by its name.

    Raises:
        InputRejected: one is stored in a way that does not tell which slices are whose, or would keep its old width.
    """
    _refuse_left_behind(structure, widening)
    facts, found = model_facts(widening.skeleton), dict[str, LazyTensor]()
    for part in parts(checkpoint, structure, widening):
        old = tensor = checkpoint.tensors[part.disk]
        if old.dtype not in FLOATING and (part.maps.has_new or part.maps.scale != 1.0):
            raise InputRejected(
                f"tensor {printable(part.disk)!r} is of dtype {old.dtype}, which new values cannot be made in"
            )
        target = Target.find(part.disk, part.name, widening.skeleton, converted=part.converted)
        named = Target(part.disk, _stored_name(structure, part), target.skeleton, target.layout)
        for axis, indices in part.maps.axes:
            pieces = list(indices.pieces())
            fresh: FreshSlices = SlicesOfScheme(scheme, facts, seed, named, tensor, axis, pieces)
            tensor = grow_axis(tensor, axis, pieces, _zeros(old.dtype) if widening.is_zero(part.name) else fresh)
        scaled = part.maps.scale != 1.0
        found[part.disk] = elementwise([tensor], old.dtype, part.maps.scaled) if scaled else tensor
    return found


def _stored_name(structure: Structure, part: Part) -> str:
    """What new values are seeded by: for two tied names the same, and for a part of a parameter its own name."""
    return part.disk if part.converted else structure.skeleton.tied.get(part.name, part.name)


def _zeros(dtype: str) -> FreshSlices:
    return lambda piece, shape: Zeros(dtype, shape)  # noqa: ARG005 - all zeros are alike


def parts(checkpoint: Checkpoint, structure: Structure, widening: Widening) -> Iterator[Part]:
    """The tensors on disk that hold what grows.

    Raises:
        InputRejected: a conversion of the loader is not understood, or an axis is not cut where tensors are.
    """
    names = structure.memory
    for name, maps in widening.maps.items():
        for disk in names.on_disk(name):
            if not names[disk].converted:
                yield Part(disk, name, maps, converted=False)
        if any(names[disk].converted for disk in names.on_disk(name)):
            for disk, held in slices(names, name, checkpoint.tensors).items():
                shape = checkpoint.tensors[disk].shape
                axes = []
                for axis, indices in maps.axes:
                    if axis == 0:  # experts are tensors of their own, see new_experts
                        continue
                    own = indices.cut(held.start, held.start + shape[held.axis]) if axis == held.axis + 1 else indices
                    if own is None:
                        raise InputRejected(
                            f"tensor {printable(disk)!r} is a part of {printable(name)} that does not grow by itself"
                        )
                    axes.append((axis - 1, own))
                if axes or maps.scale != 1.0:
                    yield Part(disk, name, maps.along(axes), converted=True)


def _refuse_left_behind(structure: Structure, widening: Widening) -> None:
    """Refuse tensors that the class does not load and whose like in the model become wider."""
    kinds = {kind(name) for name in widening.maps}
    left = next((disk for disk in structure.unloaded if kind(structure.memory[disk].name) in kinds), None)
    if left is not None:
        raise InputRejected(
            f"tensor {printable(left)!r} is not loaded by {structure.skeleton.architecture} and would keep its old width, as those of"
            " multi-token prediction do; drop it first with edit_tensors"
        )
