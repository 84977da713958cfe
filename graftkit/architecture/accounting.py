"""Which tensor of a checkpoint is what, as transformers' own loader sees it; and which ones no class knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graftkit.architecture import skeleton as sk
from graftkit.architecture.names import TensorNames
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import FLOATING
from graftkit.errors import InputRejected, few, plural, printable


@dataclass(frozen=True, slots=True)
class Unloaded:
    """Why the class does not load a tensor: another ``architecture`` holds it, or (None) the class ignores its name."""

    architecture: str | None = None


@dataclass(frozen=True, slots=True)
class Structure:
    """A checkpoint whose tensors are all accounted for: the class's own by name in memory, and the unloaded ones with the reason.

    ``unknown`` are tensors that no class of this config loads or ignores.
    """

    skeleton: sk.Skeleton
    memory: TensorNames
    unloaded: Mapping[str, Unloaded]
    unknown: tuple[str, ...] = ()

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
    _check_kinds(checkpoint, skeleton, memory, where)
    unloaded = {name: Unloaded() for name, (key, _) in memory.items() if key not in skeleton.shapes}
    unexpected = [name for name in unloaded if memory[name].name in info.unexpected]
    siblings = _sibling_names(checkpoint, skeleton, unexpected) if unexpected else {}
    return Structure(skeleton, memory, unloaded | siblings, tuple(sorted(set(unexpected) - siblings.keys())))


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


def _check_kinds(checkpoint: Checkpoint, skeleton: sk.Skeleton, memory: TensorNames, where: str) -> None:
    """Compare kinds of dtypes: a header that says I32 of a float tensor has a legal shape, and loads as garbage."""
    if "quantization_config" in checkpoint.config:
        return
    state = skeleton.model.state_dict()
    for disk, (key, _) in memory.items():
        if key not in state:
            continue
        found, wanted = checkpoint.tensors[disk].dtype, state[key].dtype
        if wanted.is_floating_point != (found in FLOATING):
            raise InputRejected(f"{where}: tensor {printable(disk)!r} has dtype {found}, the class wants {wanted}")


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
