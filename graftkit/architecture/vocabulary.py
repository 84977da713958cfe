"""Which tensors and which config values are indexed by the vocabulary: found by the differential skeleton.

The class is built twice with one config value changed. Exactly the tensors whose shape moves depend on that value; the
getters of transformers only name their roles. No table of architectures is involved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graftkit.architecture import skeleton as sk
from graftkit.architecture.accounting import Structure, account, refuse_packed
from graftkit.architecture.capabilities import parameters_of
from graftkit.architecture.embeddings import INPUT, OUTPUT, call_getter
from graftkit.architecture.governing import Governing, effect, find_governing, resized_by_transformers
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes
from graftkit.checkpoint.tensors import FLOATING
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Role = Literal["input", "further_input", "output", "output_bias", "sibling"]


@dataclass(frozen=True, slots=True)
class VocabularyTensor:
    """A tensor on disk that has one row for each token id, along ``axis``."""

    name: str
    axis: int
    role: Role


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary of a checkpoint: rows of its tables, tensors on disk, and the config values that hold the size.

    ``tied`` says that input and output rows are one table, as the loader would decide it: by the config, and by the
    bytes where both are stored. ``notes`` are sentences for the plan.
    """

    rows: int
    config_paths: tuple[sk.Path, ...]
    tensors: tuple[VocabularyTensor, ...]
    tied: bool
    has_output: bool
    notes: tuple[str, ...]

    def of_role(self, role: Role) -> tuple[VocabularyTensor, ...]:
        """The tensors of one role, in the order on disk."""
        return tuple(tensor for tensor in self.tensors if tensor.role == role)


#: That of a class that takes no token ids.
NO_VOCABULARY = Vocabulary(0, (), (), tied=False, has_output=False, notes=())


def vocabulary_of(checkpoint: Checkpoint, structure: Structure | None = None) -> Vocabulary:
    """The result of :func:`find_vocabulary`; :data:`NO_VOCABULARY` where the class takes images or sound alone.

    Raises:
        InputRejected: as there.
    """
    structure = structure or account(checkpoint)
    return find_vocabulary(checkpoint, structure) if takes_ids(structure.skeleton.model) else NO_VOCABULARY


def takes_ids(model: PreTrainedModel) -> bool:
    """Whether the forward of ``model`` takes token ids."""
    parameters = parameters_of(model)
    return model.main_input_name == "input_ids" or not {"input_ids", "decoder_input_ids"}.isdisjoint(parameters)


def find_vocabulary(checkpoint: Checkpoint, structure: Structure | None = None) -> Vocabulary:
    """Find every tensor and config value that is indexed by the vocabulary.

    Raises:
        InputRejected: there is no input embedding, no config value governs it, or a tensor that is indexed by the
            vocabulary is neither input table, output table nor output bias.
    """
    structure = structure or account(checkpoint)
    skeleton = structure.skeleton
    table = skeleton.embedding(INPUT)
    if table is None and not takes_ids(skeleton.model):
        raise InputRejected(
            f"{skeleton.architecture}: takes {skeleton.model.main_input_name} and no token ids, so it has no vocabulary"
        )
    if table is None:
        raise InputRejected(
            f"{skeleton.architecture}: transformers names no single table as its input embedding"
            f" ({_kind(call_getter(skeleton.model, INPUT))}), so which rows belong to the token ids is not known"
        )
    rows = int(table.weight.shape[0])
    governing = find_governing(checkpoint.config, skeleton, rows)
    refuse_packed(structure, governing.moved)
    groups, notes = _tied_groups(checkpoint, structure, governing.moved)
    roles = _roles(skeleton, governing, groups)
    if None in roles.values():
        further = resized_by_transformers(checkpoint.config, skeleton, rows)
        roles |= {name: "further_input" for name, role in roles.items() if role is None and name in further}
    tensors = [
        VocabularyTensor(
            disk, governing.moved[key], _role_on_disk(disk, key, roles[key], skeleton, governing, converted)
        )
        for disk, (key, converted) in structure.memory.items()
        if key in governing.moved
    ]
    tensors += _other_tensors(checkpoint, structure, (rows, governing), {t.name: t for t in tensors})
    _check_growable(checkpoint, tensors, rows)
    has_output = bool(skeleton.weight_names(OUTPUT))
    tied = has_output and not any(tensor.role == "output" for tensor in tensors)
    order = {name: index for index, name in enumerate(checkpoint.tensors)}
    tensors.sort(key=lambda tensor: order[tensor.name])
    return Vocabulary(rows, governing.paths, tuple(tensors), tied, has_output, tuple(notes))


def _tied_groups(
    checkpoint: Checkpoint, structure: Structure, moved: Mapping[str, int]
) -> tuple[dict[str, str], list[str]]:
    """Name in memory -> the representative of its tied group, as the loader would tie them.

    Where both sides are stored, the loader ties them only when their values are equal, so the bytes are compared.
    """
    groups = {name: name for name in moved}
    notes: list[str] = []

    def find(name: str) -> str:
        while groups[name] != name:
            name = groups[name]
        return name

    for target, origin in structure.skeleton.tied.items():
        if target not in groups or origin not in groups:
            continue
        one, other = (structure.memory.first_on_disk(name) for name in (target, origin))
        if one is not None and other is not None:
            if not equal_bytes(checkpoint.tensors[one], checkpoint.tensors[other]):
                notes.append(f"{one} and {other} differ on disk, so they are not tied")
                continue
            notes.append(f"{one} and {other} are stored twice with equal bytes: tied, and kept so")
        groups[find(target)] = find(origin)
    return {name: find(name) for name in groups}, notes


def _roles(skeleton: sk.Skeleton, governing: Governing, groups: Mapping[str, str]) -> dict[str, Role | None]:
    """Name in memory -> role. A tensor of the input's tied group is input, also where the output shares it."""
    inputs = {groups[name] for name in skeleton.weight_names(INPUT) if name in groups}
    outputs = {groups[name] for name in skeleton.weight_names(OUTPUT) if name in groups} - inputs
    roles: dict[str, Role | None] = {}
    for name, axis in governing.moved.items():
        shape = skeleton.shapes[name]
        if groups[name] in inputs:
            roles[name] = "input"
        elif groups[name] in outputs:
            roles[name] = "output"
        elif math.prod(shape) == shape[axis] and name not in governing.doubtful:
            roles[name] = "output_bias"
        else:
            roles[name] = None
    return roles


def _role_on_disk(
    disk: str, key: str, role: Role | None, skeleton: sk.Skeleton, governing: Governing, converted: bool
) -> Role:
    """The role of one tensor, or the reason why a new token's values in it are not known."""
    tensor = f"tensor {printable(disk)!r}"
    if not skeleton.model.state_dict()[key].is_floating_point():
        raise InputRejected(f"{tensor} is indexed by the vocabulary and is not floating point")
    if role is not None and converted:
        raise InputRejected(f"{tensor} is indexed by the vocabulary and stored in a converted form")
    if role is not None:
        return role
    if key in governing.doubtful:
        raise InputRejected(
            f"{tensor} has the size of the vocabulary by config.json's {'.'.join(governing.doubtful[key])}; whether that is"
            " this vocabulary or another one of the same size cannot be told"
        )
    raise InputRejected(
        f"{tensor} of shape {list(skeleton.shapes[key])} is indexed by the vocabulary, but is neither input table, output"
        " table nor output bias; what a new token's values in it should be is not known"
    )


def _kind(value: object) -> str:
    return "it names none" if value is None else f"it names a {type(value).__name__}"


def _other_tensors(
    checkpoint: Checkpoint,
    structure: Structure,
    vocabulary: tuple[int, Governing],
    known: Mapping[str, VocabularyTensor],
) -> list[VocabularyTensor]:
    """Ignored and sibling tensors with one row for each id: copies of a known table share its role, others are means."""
    rows, governing = vocabulary
    names = [name for name in structure.unloaded if rows in checkpoint.tensors[name].shape]
    axes = _axes_by_siblings(checkpoint, structure, rows, governing, names) if names else {}
    found = []
    for name in names:
        if name in structure.unknown:
            raise InputRejected(
                f"{printable(name)} has {rows} rows or columns, as the vocabulary has, and no class of this config says what it holds,"
                " so it cannot grow with the vocabulary; drop it from the checkpoint first, or leave the vocabulary as it is"
            )
        tensor = checkpoint.tensors[name]
        axis = axes.get(name, tensor.shape.index(rows))
        if axis is None:
            continue
        twins = [t.role for t in known.values() if equal_bytes(tensor, checkpoint.tensors[t.name])]
        found.append(VocabularyTensor(name, axis, twins[0] if twins else "sibling"))
    return found


def _axes_by_siblings(
    checkpoint: Checkpoint, structure: Structure, rows: int, governing: Governing, names: list[str]
) -> dict[str, int | None]:
    """Where another class of this config has a tensor, its axis of the vocabulary, None where it has none."""
    axes: dict[str, int | None] = {}
    for architecture in sk.sibling_architectures(checkpoint.config, structure.skeleton.architecture):
        if len(axes) == len(names):
            break
        try:
            sibling = sk.build_skeleton(checkpoint.config, architecture)
        except InputRejected:
            continue
        moved = effect(checkpoint.config, sibling, governing.paths, rows)
        for disk, (key, _) in sibling.memory_names(names).items():
            if moved is not None and sibling.shapes.get(key) == checkpoint.tensors[disk].shape:
                axes.setdefault(disk, moved.get(key))
    return axes


def _check_growable(checkpoint: Checkpoint, tensors: list[VocabularyTensor], rows: int) -> None:
    for item in tensors:
        tensor = checkpoint.tensors[item.name]
        if tensor.dtype not in FLOATING:
            raise InputRejected(
                f"tensor {printable(item.name)!r} is indexed by the vocabulary and is not floating point"
            )
        if tensor.shape[item.axis] != rows or math.prod(tensor.shape[: item.axis]) != 1:
            raise InputRejected(
                f"tensor {printable(item.name)!r} of shape {list(tensor.shape)} cannot grow along axis {item.axis}"
            )
