"""Which tensor of a checkpoint is what, as transformers' own loader sees it; and which ones no class knows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from graftkit.architecture import skeleton as sk
from graftkit.architecture.names import TensorNames
from graftkit.architecture.packed import NOTHING_PACKED, Packed
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import FLOATING, ITEM_BYTES
from graftkit.errors import InputRejected, few, plural, printable


@dataclass(frozen=True, slots=True)
class Unloaded:
    """Why the class does not load a tensor: another ``architecture`` holds it, or (None) the class ignores its name."""

    architecture: str | None = None


@dataclass(frozen=True, slots=True)
class Structure:
    """A checkpoint whose tensors are all accounted for: the class's own by name in memory, and the unloaded ones with the reason.

    ``unknown`` are tensors that no class of this config loads or ignores, ``packed`` those that hold quantized weights.
    """

    skeleton: sk.Skeleton
    memory: TensorNames
    unloaded: Mapping[str, Unloaded]
    unknown: tuple[str, ...] = ()
    packed: Packed = NOTHING_PACKED

    def names_not_loaded(self, disks: Iterable[str]) -> frozenset[str]:
        """What the loader calls those of these tensors on disk that it leaves out."""
        return frozenset(self.memory[disk].name for disk in disks if disk in self.unloaded or disk in self.unknown)


def account(checkpoint: Checkpoint) -> Structure:
    """Build the skeleton and account for every tensor on disk.

    Raises:
        InputRejected: a tensor is missing, or has another shape or kind of dtype than the class wants.
    """
    skeleton = sk.build_skeleton(checkpoint.config)
    where = f"{checkpoint.name}: {skeleton.architecture}"
    info = check_shapes(checkpoint, skeleton)
    if info.missing:
        raise InputRejected(
            f"{where}: {len(info.missing)} tensor(s) are missing and would be random at every load: "
            f"{few(info.missing)}; save the checkpoint once from the class that you want to use"
        )
    memory = skeleton.memory_names(checkpoint.tensors)
    packed = info.packed.tensors
    _check_kinds(checkpoint, skeleton, {disk: key for disk, (key, _) in memory.items() if disk not in packed}, where)
    unloaded = {
        disk: Unloaded() for disk, (key, _) in memory.items() if key not in skeleton.shapes and disk not in packed
    }
    unexpected = [name for name in unloaded if memory[name].name in info.unexpected]
    siblings = _sibling_names(checkpoint, skeleton, unexpected) if unexpected else {}
    unknown = tuple(sorted(set(unexpected) - siblings.keys()))
    return Structure(skeleton, memory, unloaded | siblings, unknown, info.packed)


def refuse_unknown(checkpoint: Checkpoint, structure: Structure) -> None:
    """Refuse tensors that no class knows.

    Raises:
        InputRejected: there are some; the message says how they are carried along.
    """
    if structure.unknown:
        raise InputRejected(
            f"{checkpoint.name}: {structure.skeleton.architecture}: {plural(len(structure.unknown), 'tensor')} of no class of this"
            f" config: {few(structure.unknown)}; set unknown_tensors: carry to take them over byte for byte, or name their class in"
            " config.json's architectures"
        )


def refuse_packed(structure: Structure, tables: Collection[str]) -> None:
    """Refuse packed weights among those (names in memory) that have one row for each id.

    Raises:
        InputRejected: one of them is packed.
    """
    packed = sorted(structure.packed.weights.intersection(tables))
    if packed:
        module = packed[0].rpartition(".")[0]
        stored = [disk for disk, owner in structure.packed.tensors.items() if owner == module]
        raise InputRejected(
            f"{structure.skeleton.architecture}: {printable(packed[0])!r} is indexed by the vocabulary and is stored quantized"
            f" ({few(stored)}); rows are read and made in plain embeddings and heads alone: give a checkpoint that keeps them in 16"
            " bit, or the one that this was quantized from"
        )


def check_shapes(checkpoint: Checkpoint, skeleton: sk.Skeleton) -> sk.LoadingInfo:
    """What the loader would do with the tensors, none of which has another shape than the config gives it.

    Raises:
        InputRejected: one has.
    """
    info = skeleton.loading(checkpoint.tensors)
    if info.mismatched:
        name, found, wanted = min(info.mismatched)
        raise InputRejected(
            f"{checkpoint.name}: {skeleton.architecture}: tensor {printable(name)!r} has shape {list(found)} on disk,"
            f" the config wants {list(wanted)}"
        )
    return info


def _check_kinds(checkpoint: Checkpoint, skeleton: sk.Skeleton, memory: Mapping[str, str], where: str) -> None:
    """Compare kinds of dtypes: a header that says I32 of a float tensor has a legal shape, and loads as garbage."""
    state = skeleton.model.state_dict()
    for disk, key in memory.items():
        if key not in state:
            continue
        found, wanted = checkpoint.tensors[disk].dtype, state[key].dtype
        if wanted.is_floating_point != (found in FLOATING):
            why = "" if skeleton.quantized else _not_told(found)
            raise InputRejected(f"{where}: tensor {printable(disk)!r} has dtype {found}, the class wants {wanted}{why}")


def _not_told(dtype: str) -> str:
    """What to say of quantized values beside a config that says nothing of them."""
    eight = dtype in ITEM_BYTES and ITEM_BYTES[dtype] == 1 and dtype != "BOOL"
    return "; if these are quantized values, config.json has lost its quantization_config" if eight else ""


def _sibling_names(checkpoint: Checkpoint, skeleton: sk.Skeleton, names: list[str]) -> dict[str, Unloaded]:
    """Which of ``names`` stand in the state dict of another class with the same config, and in which."""
    found: dict[str, Unloaded] = {}
    for architecture in sk.sibling_architectures(checkpoint.config, skeleton.architecture):
        if len(found) == len(names):
            break
        try:
            sibling = sk.build_skeleton(checkpoint.config, architecture)
        except InputRejected:
            continue
        for disk, (key, _) in sibling.memory_names(names).items():
            if sibling.shapes.get(key) == checkpoint.tensors[disk].shape:
                found.setdefault(disk, Unloaded(architecture))
    return found
